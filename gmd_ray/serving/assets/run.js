'use strict';
// Sliders between two pictures, and the drop zone.
(() => {
  for (const slider of document.querySelectorAll('[data-slider]')) {
    const range = slider.querySelector('input');
    range.addEventListener('input', () => slider.style.setProperty('--at', `${range.value}%`));
    for (const image of slider.querySelectorAll('img')) // small pictures are shown pixel by pixel
      image.addEventListener('load', () => image.classList.toggle('small', image.naturalWidth < 300));
  }

  const drop = document.getElementById('drop');
  if (!drop) return;
  const $ = (id) => document.getElementById(id);
  const file = $('file');
  let busy = false;

  function say(text, error = false) {
    $('state').textContent = text;
    $('state').classList.toggle('error', error);
  }

  async function restore(photo) {
    if (busy || !photo) return;
    const largest = Number(drop.dataset.largest);
    if (photo.size > largest) {
      say(`${photo.name} is too large: ${Math.round(largest / 1e6)} MB is the most.`, true);
      return;
    }
    busy = true;
    $('outcome').hidden = true;
    say(`Restoring ${photo.name} …`);
    try {
      const response = await fetch('restored', {
        method: 'POST',
        headers: { 'Content-Type': 'application/octet-stream' },
        body: photo,
      });
      if (!response.ok) throw new Error((await response.text()).trim());
      const made = await response.json();
      const address = (of) => `result?id=${made.id}&of=${of}`;
      $('before').src = address('before');
      $('after').src = address('after');
      await Promise.all([$('before').decode(), $('after').decode()]);
      $('save').href = address('after');
      $('save').download = `${photo.name.replace(/\.[^.]*$/, '')}_restored.png`;
      $('facts').textContent = `${made.width} × ${made.height} pixels, restored in ${made.seconds} s`;
      $('outcome').hidden = false;
      say('');
    } catch (error) {
      say(error.message === 'Failed to fetch' ? 'The server does not answer.' : error.message, true);
    }
    busy = false;
    file.value = '';
  }

  file.addEventListener('change', () => restore(file.files[0]));
  for (const name of ['dragenter', 'dragover'])
    document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add('over'); });
  document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) drop.classList.remove('over'); });
  document.addEventListener('drop', (event) => {
    event.preventDefault();
    drop.classList.remove('over');
    restore(event.dataTransfer.files[0]);
  });
  document.addEventListener('paste', (event) => restore(event.clipboardData.files[0]));
})();
