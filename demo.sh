#!/usr/bin/env bash
# The laptop run: data, autoencoder, the three stages of UniX, score. From nothing to out/phantom/ on two cores.
# Started again, every step resumes where it was. PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python}
began=$SECONDS
took() { echo "== $1 after $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s"; }
mkdir -p out/phantom

$python -m phantom.prepare
took "data"

# the autoencoder and stage 1 do not need each other: two single-threaded trainings use two cores better than one would
echo "training the autoencoder in the background: tail -f out/phantom/vae.txt"
$python -m phantom.train_vae --threads 1 > out/phantom/vae.txt 2>&1 &
vae=$!
trap 'kill $vae 2> /dev/null || true' EXIT
$python train_und.py --preset phantom --threads 1
took "stage 1"
wait $vae || { tail -n 5 out/phantom/vae.txt; exit 1; }
trap - EXIT
took "autoencoder"
$python -m training.latents --preset phantom

$python train_gen.py --preset phantom
took "stage 2"
$python train_gen.py --preset phantom --stage 3
took "stage 3"

$python evaluate.py phantom --checkpoint out/phantom/gen128 --out out/phantom/score
took "score"
