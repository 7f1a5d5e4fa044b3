#!/bin/sh
# Run a command on a GPU that is lent for minutes at a time, from the root of the repository:
#
#   scripts/lent_gpu.sh 540 out python3 scripts/benchmark.py --gpu-campaign --targets homo
#   scripts/lent_gpu.sh 540 out python3 scripts/reproduce.py table3 --targets homo --epochs 200
#   scripts/lent_gpu.sh 540 out python3 scripts/train.py qm9/painn
#
# After the seconds the command is interrupted, as by Ctrl-C, and runs/, where all results are, is
# packed into out/runs.tgz (12 MB a target of QM9). The same command with that file in the root
# continues from there, on this machine or another. What a machine without network needs beside the
# repository: data/qm9/qm9.npz* (34 MB), and wheels of missing packages in .whl/.
#   python -c "from egnn_jax.data import qm9; qm9.load()"
#   pip download --no-deps -d .whl jraph tyro docstring-parser tqdm-loggable lazy_loader safetensors
#   pip download --no-deps -d .whl egnn-pytorch einops   # for the benchmark
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
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
timeout --signal=INT --kill-after=60 "$seconds" "$@" || status=$?
# The newest whole checkpoint is enough to continue; one cut short has no number for a name.
find runs -path '*/checkpoints/last' -type d | while read -r last; do
    ls "$last" | grep -x '[0-9]*' | sort -n | sed '$d' |
        while read -r step; do rm -r "${last:?}/$step"; done
done
tar czf "$out/runs.tgz" runs
cp runs/benchmark.* "$out" 2>/dev/null || true
[ "$status" = 0 ] || {
    echo "not finished (status $status; 124: out of time): put $out/runs.tgz in the root and call again"
    exit "$status"
}
