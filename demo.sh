#!/usr/bin/env bash
# The laptop run: data, autoencoder, the three stages of UniX, score. From nothing to out/phantom/ on two cores.
#     bash demo.sh            started again, every step resumes where it was
#     bash demo.sh short      the same way in a few minutes, to out/phantom-short/: a look at it, not a result
# PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0" 2> /dev/null || echo "$0")")"
python=${PYTHON:-python}
began=$SECONDS
took() { echo "== $1 after $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s"; }

# where everything goes, and what is shorter than in the presets
data=datasets/phantom out=out/phantom
few_images= few_vae= few_und= few_gen64= few_gen128= few_scores=
case "${1-}" in
    "") ;;
    -h | --help)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' demo.sh; exit ;;
    short)
        data=datasets/phantom-short out=out/phantom-short
        short="--warmup 10 --ema 0.9 --log-every 10"
        few_images="--train 640 --val 32 --test 32"
        few_vae="$short --steps 100"
        few_und="$short --steps 80"
        few_gen64="$short --steps 40 --batch-size 16 --micro-batch 16"
        few_gen128="$short --steps 30 --batch-size 16 --micro-batch 16"
        few_scores="--num 16 --steps 8 --bootstrap 0"
        echo "The short way: it shows every step, and its results are not meant to be good." ;;
    *)  echo "error: demo.sh knows 'short' and --help, got '$1'." >&2; exit 2 ;;
esac
mkdir -p "$out"

"$python" -m phantom.prepare --out $data $few_images
took "data"

# the autoencoder and stage 1 do not need each other: two single-threaded trainings use two cores better than one would
echo "training the autoencoder in the background: tail -f $out/vae.txt"
"$python" -m phantom.train_vae --data $data --out $out/vae --threads 1 $few_vae > $out/vae.txt 2>&1 &
vae=$!
trap 'kill $vae 2> /dev/null || true' EXIT
"$python" train_und.py --preset phantom --data $data --out $out/und --threads 1 $few_und
took "stage 1"
wait $vae || { tail -n 5 $out/vae.txt; exit 1; }
trap - EXIT
took "autoencoder"
"$python" -m training.latents --preset phantom --data $data --vae $out/vae

gen="--preset phantom --data $data --vae $out/vae"
"$python" train_gen.py $gen --init $out/und --out $out/gen64 $few_gen64
took "stage 2"
"$python" train_gen.py $gen --stage 3 --init $out/gen64 --out $out/gen128 $few_gen128
took "stage 3"

"$python" evaluate.py phantom --checkpoint $out/gen128 --out $out/score $few_scores
took "score"
if [ "${1-}" = short ]; then
    echo "Such a short training learns next to nothing: \`bash demo.sh\` trains long enough, demo/ holds a model."
fi
