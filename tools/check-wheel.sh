#!/usr/bin/env bash
# Installs a wheel as a newcomer would: a fresh environment, no compiler on the path, and then a story.
# Usage: tools/check-wheel.sh dist/pocketlm-*.whl
set -euo pipefail
wheel=$(realpath "${1:?usage: tools/check-wheel.sh WHEEL}")
size=$(stat -c %s "$wheel")
echo "$(basename "$wheel"): $size bytes"
[ "$size" -le 12000000 ] || { echo "larger than 12 MB" >&2; exit 1; }
place=$(mktemp -d)
remove=$(command -v rm)
trap '"$remove" -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/env"
mkdir "$place/bin" # an empty one
export PATH="$place/bin"
for name in cc gcc c++ clang cargo rustc; do
    ! command -v "$name" >/dev/null || { echo "$name is on the path" >&2; exit 1; }
done
cd "$place"
env/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: "$wheel"
env/bin/python -m pip list --disable-pip-version-check
env/bin/python -m pip list --disable-pip-version-check --format freeze >installed.txt
while read -r line; do
    case ${line%%==*} in
    torch | jax | jaxlib | transformers) echo "the base install pulls $line" >&2; exit 1 ;;
    esac
done <installed.txt
env/bin/pocketlm generate "Once upon a time" --max-tokens 40 --temperature 0.7 --seed 7
