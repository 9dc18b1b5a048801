#!/bin/sh
# Runs tests/lm_eval.py with the Python named by DMS_TEST_PYTHON, or python3; 77 says that Python or
# a package is missing.
python=${DMS_TEST_PYTHON:-python3}
command -v "$python" >/dev/null || {
    echo "[SKIP] lm_eval: there is no $python"
    exit 77
}
exec "$python" "$(dirname "$0")/lm_eval.py" "$@"
