#!/bin/sh
# Run PEFT's MetaMathQA benchmark, unchanged, on specs of bishare: run.sh [--first] [FOLDER]. See README.md.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
first=
if [ "${1:-}" = --first ]; then
    first=--first
    shift
fi
work=${1:-$here/work}
mkdir -p "$work"
cd "$work"
[ -d peft ] || git clone -q https://github.com/huggingface/peft
# On another branch than `main`, PEFT writes results into temporary_results.
git -C peft checkout -q -B main v0.21.2
[ -d venv ] || python3 -m venv venv
python=$PWD/venv/bin/python
benchmark=$PWD/peft/method_comparison/MetaMathQA
"$python" -m pip install -q -e peft -r "$benchmark/requirements.txt" "$here/../.."
"$python" -m bishare_dsl.autoload on
"$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "run.sh needs a GPU that torch can use")'
results=$("$python" "$here/experiments.py" "$benchmark" $first)
# A run that fails does not end the others; the table names what is missing.
make -C "$benchmark" PYTHON="$python" $results
"$python" "$here/table.py" "$benchmark/results" $first
