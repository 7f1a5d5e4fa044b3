#!/bin/sh
# Table 3 on a GPU that is lent for minutes at a time. From the repository's root, nine minutes of one target:
#
#   scripts/lent_gpu.sh 540 out --targets homo --epochs 200
#
# When the seconds are over the run is saved and packed into out/runs.tgz; the same command with that file in the root goes on
# from there, on this machine or another. When all is trained, out/ holds table3.md and table3.png.
# Takes along: data/qm9/qm9.npz (34 MB) and, for a machine without network, wheels of the missing packages in .whl/:
#   python -c "from egnn_jax.data import qm9; qm9.load()"
#   pip download --no-deps -d .whl jraph tyro docstring-parser tqdm-loggable
set -eu
seconds=$1 out=$2
shift 2
if [ -d .whl ]; then
    python3 -m pip install -q --no-index --no-deps --upgrade --target .site .whl/*.whl
    export PYTHONPATH="$PWD/.site${PYTHONPATH:+:$PYTHONPATH}"
fi
test -f data/qm9/qm9.npz || { echo "lent_gpu.sh: data/qm9/qm9.npz is missing; qm9.load() makes it" >&2; exit 1; }
if [ -f runs.tgz ] && [ ! -d runs/qm9 ]; then tar xzf runs.tgz; fi
mkdir -p "$out"
status=0
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" timeout --signal=INT --kill-after=60 "$seconds" \
    python3 scripts/reproduce.py table3 --out "$out" "$@" || status=$?
# The newest checkpoint is enough to go on from.
for last in runs/qm9/*/checkpoints/last; do
    ls "$last" | sort -n | sed '$d' | while read -r step; do rm -r "${last:?}/$step"; done
done
tar czf "$out/runs.tgz" runs/qm9
cat "$out/table3.md" 2>/dev/null || echo "not finished (status $status): put $out/runs.tgz in the root and call again"
