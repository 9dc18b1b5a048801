#!/bin/sh
# Runs tests/verdicts.py with the Python named by DMS_TEST_PYTHON, or python3; 77 says that Python or
# lm-evaluation-harness is missing.
python=${DMS_TEST_PYTHON:-python3}
command -v "$python" >/dev/null || {
    echo "[SKIP] verdicts: there is no $python"
    exit 77
}
exec "$python" "$(dirname "$0")/verdicts.py"
