#!/bin/sh
# A command on a GPU that is lent for minutes at a time, such as these, nine minutes at once, from the repository's root:
#
#   scripts/lent_gpu.sh 540 out python3 scripts/benchmark.py --gpu-campaign --targets homo
#   scripts/lent_gpu.sh 540 out python3 scripts/reproduce.py table3 --out out --targets homo --epochs 200
#
# When the seconds are over the command is interrupted, as by Ctrl-C, and runs/, the benchmark's results among it, is packed into
# out/runs.tgz (12 MB a target of QM9); the same command with that file in the root goes on from there, on this machine or another.
# Takes along: data/qm9/qm9.npz* (34 MB) and, for a machine without network, wheels of the missing packages in .whl/:
#   python -c "from egnn_jax.data import qm9; qm9.load()"
#   pip download --no-deps -d .whl jraph tyro docstring-parser tqdm-loggable lazy_loader   # and for the benchmark: egnn-pytorch einops
set -eu
seconds=$1 out=$2
shift 2
if [ -d .whl ]; then
    python3 -m pip install -q --no-index --no-deps --upgrade --target .site .whl/*.whl
    export PYTHONPATH="$PWD/.site${PYTHONPATH:+:$PYTHONPATH}"
fi
if [ -d runs ]; then
    [ ! -f runs.tgz ] || echo "runs.tgz is left alone: there is runs/ already" >&2
elif [ -f runs.tgz ]; then
    tar xzf runs.tgz
fi
mkdir -p "$out" runs
status=0
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" timeout --signal=INT --kill-after=60 "$seconds" "$@" || status=$?
# The newest whole checkpoint is enough to go on from; one cut short has no number for a name.
find runs -path '*/checkpoints/last' -type d | while read -r last; do
    ls "$last" | grep -x '[0-9]*' | sort -n | sed '$d' | while read -r step; do rm -r "${last:?}/$step"; done
done
tar czf "$out/runs.tgz" runs
cp runs/benchmark.* "$out" 2>/dev/null || true
[ "$status" = 0 ] || echo "not finished (status $status): put $out/runs.tgz in the root and call again"
