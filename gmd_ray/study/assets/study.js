'use strict';
// A rater's page. With a server, each answer is posted; in a page alone, answers stay in the browser's storage until
// they are saved as a CSV file.
(() => {
  const data = JSON.parse(document.getElementById('study').textContent);
  const alone = data.pictures !== null;
  const $ = (id) => document.getElementById(id);
  const views = [...document.querySelectorAll('.view')];
  const images = [$('left'), $('right')];
  const buttons = [...document.querySelectorAll('[data-choice]')];
  const sections = ['intro', 'compare', 'done'];
  let pairs = data.pairs;
  let answers = data.answers;
  let index = 0;
  let shownAt = null; // the time when both pictures were there; null while an answer cannot be given
  let round = 0; // counts pairs shown, so that a late picture of an earlier pair is ignored

  // --- answers ------------------------------------------------------------------------------------------------------

  const memory = {
    key: `gmd-study-${data.study}`,
    rater: null,
    name: '',
    given: {}, // pair -> [choice, seconds, time]
    load() {
      try {
        const kept = JSON.parse(localStorage.getItem(this.key) || 'null');
        if (kept && typeof kept.rater === 'string') Object.assign(this, kept);
      } catch (error) { /* a browser without storage: answers live as long as the page */ }
      if (!this.rater) {
        const bytes = crypto.getRandomValues(new Uint8Array(8));
        this.rater = [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
      }
    },
    keep() {
      try {
        localStorage.setItem(this.key, JSON.stringify({ rater: this.rater, name: this.name, given: this.given }));
      } catch (error) { /* see load */ }
    },
  };

  async function submit(pair, choice, seconds, revise) {
    if (alone) {
      memory.given[pair] = [choice, seconds, new Date().toISOString().replace(/\.\d+Z$/, '+00:00')];
      memory.keep();
      return choice;
    }
    const response = await fetch('answers', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ pair, choice, seconds, revise }),
    });
    if (!response.ok && response.status !== 409) throw new Error(`the server refused it (${response.status})`);
    return (await response.json()).choice; // the one that is stored
  }

  function csv() {
    const cell = (value) => `"${String(value).replace(/"/g, '""')}"`;
    const lines = ['study,rater,name,pair,choice,seconds,answered_at'];
    for (const [pair, [choice, seconds, at]] of Object.entries(memory.given))
      lines.push([data.study, memory.rater, memory.name, pair, choice, seconds.toFixed(2), at].map(cell).join(','));
    return lines.join('\r\n') + '\r\n';
  }

  function shuffled(list, seed) { // an order of each rater's own, the same after a reload
    let state = parseInt(seed.slice(0, 8), 16) >>> 0;
    const random = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
    const out = [...list];
    for (let i = out.length - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1));
      [out[i], out[j]] = [out[j], out[i]];
    }
    return out;
  }

  // --- pages --------------------------------------------------------------------------------------------------------

  function open(name) {
    for (const section of sections) $(section).hidden = section !== name;
    window.scrollTo(0, 0);
  }

  const source = (name) => (alone ? data.pictures[name] : `pictures/${name}`);
  const count = () => Object.keys(answers).length;

  function show(i) {
    index = i;
    if (index >= pairs.length) {
      $('answered').textContent = `You have compared ${count()} of ${pairs.length} pairs.`;
      open('done');
      return;
    }
    const [pair, left, right, width, height] = pairs[index];
    open('compare');
    $('message').textContent = '';
    $('count').textContent = `Pair ${index + 1} of ${pairs.length}`;
    $('progress').max = pairs.length;
    $('progress').value = count();
    $('back').disabled = index === 0;
    zoomTo(1, 0.5, 0.5);
    allow(false);
    for (const button of buttons) button.setAttribute('aria-pressed', String(answers[pair] === button.dataset.choice));
    const mine = ++round;
    const ready = [left, right].map((name, side) => {
      views[side].style.setProperty('--ratio', width / height);
      images[side].src = source(name);
      return images[side].decode();
    });
    Promise.all(ready).then(
      () => { if (mine === round) { shownAt = performance.now(); allow(true); } },
      () => { if (mine === round) $('message').textContent = 'A picture did not load. Reload the page to try again.'; },
    );
    if (!alone && index + 1 < pairs.length)
      for (const name of pairs[index + 1].slice(1, 3)) new Image().src = source(name);
  }

  function allow(yes) {
    if (!yes) shownAt = null;
    for (const button of buttons) button.disabled = !yes;
  }

  async function choose(choice) {
    if (shownAt === null) return; // pictures not there yet, or an answer on its way
    const seconds = (performance.now() - shownAt) / 1000;
    const pair = pairs[index][0];
    allow(false);
    try {
      answers[pair] = await submit(pair, choice, seconds, pair in answers);
    } catch (error) {
      $('message').textContent = `Not saved: ${error.message}. Check the connection and choose again.`;
      shownAt = performance.now() - 1000 * seconds;
      for (const button of buttons) button.disabled = false;
      return;
    }
    show(index + 1);
  }

  const back = () => { if (index > 0) show(index - 1); };

  function start() {
    if (alone) {
      // No control characters, and no sign at the front that a spreadsheet takes for a formula.
      const name = $('name').value.replace(/[\u0000-\u001f\u007f]/g, ' ').trim().replace(/^[=+\-@]+/, '');
      if (!name) { $('name').focus(); return; }
      memory.name = name;
      memory.keep();
    }
    const open = pairs.findIndex(([pair]) => !(pair in answers));
    show(open < 0 ? pairs.length : open);
  }

  function save() {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([csv()], { type: 'text/csv' }));
    link.download = `answers-${data.study}-${memory.rater}.csv`;
    document.body.append(link);
    link.click();
    link.remove();
  }

  // --- zoom: both pictures are scaled about the same point ------------------------------------------------------------

  let scale = 1, x = 0.5, y = 0.5; // (x, y): the fixed point, as fractions of the picture
  const NEAR = 3, NEAREST = 12;
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  function zoomTo(newScale, newX, newY) {
    scale = clamp(newScale, 1, NEAREST);
    [x, y] = scale === 1 ? [0.5, 0.5] : [clamp(newX, 0, 1), clamp(newY, 0, 1)];
    for (const image of images) {
      image.style.transformOrigin = `${100 * x}% ${100 * y}%`;
      image.style.transform = `scale(${scale})`;
    }
    $('compare').classList.toggle('near', scale > 1);
    $('zoom').setAttribute('aria-pressed', String(scale > 1));
  }

  function zoomAbout(newScale, fx, fy) { // the picture's point at (fx, fy) of the view stays there
    const next = clamp(newScale, 1, NEAREST);
    const about = (f, o) => (next === 1 ? 0.5 : (f - (o + (f - o) / scale) * next) / (1 - next));
    zoomTo(next, about(fx, x), about(fy, y));
  }

  const move = (dx, dy) => { if (scale > 1) zoomTo(scale, x - dx / (scale - 1), y - dy / (scale - 1)); };
  const toggle = (fx, fy) => (scale > 1 ? zoomTo(1) : zoomAbout(NEAR, fx, fy));

  const within = (view, event) => {
    const box = view.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, box];
  };

  for (const view of views) {
    const down = new Map(); // fingers and mouse buttons on this picture
    let moved = 0;
    view.addEventListener('pointerdown', (event) => {
      if (event.button) return;
      view.setPointerCapture(event.pointerId);
      if (down.size === 0) moved = 0;
      down.set(event.pointerId, event);
      if (down.size > 1) moved = Infinity;
    });
    view.addEventListener('pointermove', (event) => {
      const before = down.get(event.pointerId);
      if (!before) return;
      const [fx, fy, box] = within(view, event);
      const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
      if (down.size === 1) {
        moved += Math.hypot(dx, dy);
        move(dx / box.width, dy / box.height);
      } else {
        const other = [...down.values()].find((each) => each.pointerId !== event.pointerId);
        const gap = (a, b) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1;
        const [ox, oy] = within(view, other);
        zoomAbout(scale * gap(event, other) / gap(before, other), (fx + ox) / 2, (fy + oy) / 2);
      }
      down.set(event.pointerId, event);
    });
    const up = (event) => {
      if (!down.delete(event.pointerId) || event.type === 'pointercancel') return;
      if (down.size === 0 && moved < 6) toggle(...within(view, event));
    };
    view.addEventListener('pointerup', up);
    view.addEventListener('pointercancel', up);
    view.addEventListener('wheel', (event) => {
      event.preventDefault();
      const [fx, fy] = within(view, event);
      zoomAbout(scale * Math.exp(-event.deltaY / 300), fx, fy);
    }, { passive: false });
  }

  // --- keys and buttons -----------------------------------------------------------------------------------------------

  const arrows = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };
  const choices = { ArrowLeft: 'left', ArrowRight: 'right', ArrowDown: 'tie' };

  document.addEventListener('keydown', (event) => {
    if ($('compare').hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key;
    if (event.shiftKey && key in arrows) move(...arrows[key]);
    else if (event.shiftKey && key.length > 1) return;
    else if (key in choices) { if (!event.repeat) choose(choices[key]); }
    else if (key === 'z' || key === 'Z') { if (!event.repeat) toggle(0.5, 0.5); }
    else if (key === '+' || key === '=') zoomAbout(scale * 1.5, 0.5, 0.5);
    else if (key === '-') zoomAbout(scale / 1.5, 0.5, 0.5);
    else if (key === 'Backspace') { if (!event.repeat) back(); }
    else return;
    event.preventDefault();
  });
  for (const button of buttons) button.addEventListener('click', () => choose(button.dataset.choice));
  $('back').addEventListener('click', back);
  $('again').addEventListener('click', () => show(pairs.length - 1));
  $('zoom').addEventListener('click', () => toggle(0.5, 0.5));
  $('start').addEventListener('click', start);
  if (alone) {
    memory.load();
    answers = Object.fromEntries(Object.entries(memory.given).map(([pair, given]) => [pair, given[0]]));
    pairs = shuffled(pairs, memory.rater);
    $('name').value = memory.name;
    $('name').addEventListener('keydown', (event) => { if (event.key === 'Enter') start(); });
    $('save').addEventListener('click', save);
  }
  $('start').textContent = count() ? 'Go on' : 'Start';
  $('amount').textContent = count() ? `${count()} of ${pairs.length} pairs are done.` : `${pairs.length} pairs.`;
  open('intro');
})();
