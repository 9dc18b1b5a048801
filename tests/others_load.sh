#!/bin/sh
# Runs tests/others_load.py with the Python named by DMS_TEST_PYTHON, or python3; 77 says that Python
# or a package is missing.
python=${DMS_TEST_PYTHON:-python3}
command -v "$python" >/dev/null || {
    echo "[SKIP] others_load: there is no $python"
    exit 77
}
exec "$python" "$(dirname "$0")/others_load.py" "$@"
