#!/usr/bin/env bash
# The loop on real photographs: `tests/benchmarks/real_photos.sh DATA OUT [key=value ...]`, DATA as described in its README:
# weights/dncnn_25.pth, niqe_from_basicsr.mat, brisque_from_allmodel.pth; target_lq/; source_hq/ (60 to train on, 8 to test).
set -euo pipefail
data=$(realpath "$1") out=$2
shift 2
mkdir -p "$out/source" "$out/source_test"
for file in "$data"/source_hq/*.png; do
  number=$(basename "$file" .png)
  if ((10#$number < 60)); then cp -n "$file" "$out/source/"; else cp -n "$file" "$out/source_test/"; fi
done
models=$(python -c 'import gmd_ray, pathlib; print(pathlib.Path(gmd_ray.__file__).parent / "demo/toy/weights")')
exec gmd-ray adapt out="$out/run" \
  student.path="$data/weights/dncnn_25.pth" student.pool.num_cpus=0.25 student.pool.batch_size=2 \
  teacher.path="$models/teacher" teacher.prompt=hq teacher.steps=3 teacher.strength=0.6 teacher.true_cfg=1.5 \
  teacher.injection.blocks=all teacher.injection.tokens=image teacher.injection.steps=2 \
  teacher.tile=64 teacher.tile_overlap=16 \
  teacher.pool.min=2 teacher.pool.max=2 teacher.pool.num_cpus=0.5 teacher.pool.batch_size=1 \
  scorer.path="$models/scorer" scorer.threshold=8.2 scorer.pool.num_cpus=0.25 \
  target.path="$data/target_lq" target.gray=true generation.rows_per_block=1 \
  source.hq="$out/source" source.gray=true source.degradation=noise25 source.degradation_args.gray_noise_prob=1 \
  training.steps=100 training.batch_size=8 training.patch=48 training.lr=1e-4 training.warmup_steps=10 \
  training.ema=0.98 training.num_workers=2 training.checkpoint_every=50 training.log_every=10 \
  evaluation.target_lq="$data/target_lq" evaluation.allow_overlap=true evaluation.source_hq="$out/source_test" \
  "evaluation.metrics=[psnr,ssim,niqe,brisque]" \
  evaluation.weights.niqe="$data/weights/niqe_from_basicsr.mat" \
  evaluation.weights.brisque="$data/weights/brisque_from_allmodel.pth" "$@"
