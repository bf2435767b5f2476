#!/usr/bin/env bash
# The loop on photographs of which the photo teacher knows nothing, with two published students:
#   tests/benchmarks/real_photos.sh gray|x4 DATA OUT [key=value ...]
# gray: DnCNN for gray images with noise of sigma 25, on central crops of 192 pixels. x4: Real-ESRGAN's small network for
# animation, on central crops of 64 pixels. DATA holds weights/dncnn_25.pth, weights/realesrgan/, niqe_from_basicsr.mat,
# brisque_from_allmodel.pth; target_lq/; source_hq/ (60 photos to train on, 8 to test). There is no ground truth.
set -euo pipefail
case=$1 data=$(realpath "$2") out=$3
shift 3
mkdir -p "$out/source" "$out/source_test" "$out/target"
for file in "$data"/source_hq/*.png; do
  number=$(basename "$file" .png)
  if ((10#$number < 60)); then cp -n "$file" "$out/source/"; else cp -n "$file" "$out/source_test/"; fi
done
if [ "$case" = gray ]; then
  side=192
  student=(student.path="$data/weights/dncnn_25.pth" target.gray=true source.gray=true
    source.degradation=noise25 source.degradation_args.gray_noise_prob=1 training.patch=48)
else
  side=64
  student=(student.path="$data/weights/realesrgan/realesr-animevideov3.fp16.safetensors"
    source.degradation=realesrgan training.patch=32)
fi
python - "$data/target_lq" "$out/target" "$side" <<'PYTHON'
import sys
from pathlib import Path

from PIL import Image

source, target, side = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for file in sorted(source.iterdir()):
    with Image.open(file) as photo:
        width, height = (min(side, length) for length in photo.size)
        left, top = (photo.width - width) // 2, (photo.height - height) // 2
        photo.crop((left, top, left + width, top + height)).save(target / f"{file.stem}.png")
PYTHON
models=$(python -c 'import gmd_ray, pathlib; print(pathlib.Path(gmd_ray.__file__).parent / "demo/photos/weights")')
exec gmd-ray adapt out="$out/run" "${student[@]}" student.pool.num_cpus=0.25 student.pool.batch_size=2 \
  teacher.path="$models/teacher" teacher.prompt=hq teacher.steps=2 teacher.strength=0.3 \
  teacher.injection.blocks=all teacher.injection.tokens=image teacher.injection.steps=0 \
  teacher.tile=64 teacher.tile_overlap=16 \
  teacher.pool.min=2 teacher.pool.max=2 teacher.pool.num_cpus=0.5 teacher.pool.batch_size=4 \
  scorer.path="$models/scorer" scorer.threshold=5.4 scorer.pool.num_cpus=0.25 \
  target.path="$out/target" generation.rows_per_block=4 generation.no_progress_timeout_s=600 \
  source.hq="$out/source" controls='[source_only]' \
  training.steps=100 training.batch_size=8 training.lr=2e-5 training.warmup_steps=10 \
  training.ema=0.98 training.num_workers=1 training.cpus_per_worker=2 training.checkpoint_every=50 training.log_every=20 \
  evaluation.target_lq="$out/target" evaluation.allow_overlap=true evaluation.source_hq="$out/source_test" \
  "evaluation.metrics=[psnr,ssim,niqe,brisque]" \
  evaluation.weights.niqe="$data/weights/niqe_from_basicsr.mat" \
  evaluation.weights.brisque="$data/weights/brisque_from_allmodel.pth" "$@"
