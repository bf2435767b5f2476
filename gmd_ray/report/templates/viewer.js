// The comparator: two versions of a photo with a divider, and all versions beside it with the same zoom and position.
(() => {
  "use strict";
  const MOST = 8;
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  function picture(version, hidden) {
    const img = document.createElement("img");
    img.src = version.src;
    img.alt = hidden ? "" : version.alt;
    img.draggable = false;
    return img;
  }

  function comparator(root) {
    const find = (name) => root.querySelector("." + name);
    const stage = find("stage"), scene = find("scene"), film = find("film"), handle = find("handle");
    const divider = find("divider"), zoom = find("zoom"), difference = find("difference");
    const picks = { left: find("pick-left"), right: find("pick-right") };
    const view = { z: 1, x: 0, y: 0, split: 50 };
    let versions = [], native = 1;

    // x and y are what is cut off at the left and at the top, in per cent of the frame: the same for every frame.
    function paint() {
      const room = (view.z - 1) * 100;
      view.x = clamp(view.x, 0, room);
      view.y = clamp(view.y, 0, room);
      for (const [name, value] of [["--z", view.z], ["--x", -view.x + "%"], ["--y", -view.y + "%"]])
        root.style.setProperty(name, value);
      root.style.setProperty("--split", view.split + "%");
      divider.value = view.split;
      zoom.value = view.z;
      find("level").textContent = `${Math.round(view.z * 100) / 100}×`;
      root.classList.toggle("enlarged", view.z > 1);
      root.classList.toggle("pixels", (scene.clientWidth * view.z) / native >= 3);
      root.classList.toggle("differing", difference.checked);
      divider.disabled = difference.checked;
    }

    function zoomTo(z, cx = 50, cy = 50) {
      z = clamp(z, 1, MOST);
      view.x = ((cx + view.x) * z) / view.z - cx;
      view.y = ((cy + view.y) * z) / view.z - cy;
      view.z = z;
      paint();
    }

    function layer(side) {
      const box = document.createElement("div");
      box.className = "layer " + side;
      box.append(picture(versions[picks[side].value]));
      return box;
    }

    function show() {
      scene.replaceChildren(layer("left"), layer("right"));
      for (const side of ["left", "right"]) find(`tag.${side}`).textContent = versions[picks[side].value].label;
      for (const [i, panel] of [...film.querySelectorAll(".panel")].entries())
        panel.setAttribute("aria-pressed", String(i == picks.left.value || i == picks.right.value));
      const frame = film.querySelector(".blend");
      frame.replaceChildren(picture(versions[picks.left.value], true), picture(versions[picks.right.value], true));
      paint();
    }

    function pick(i) {
      if (String(i) === picks.left.value) picks.left.value = picks.right.value;
      picks.right.value = i;
      show();
    }

    function panel(version, i) {
      const button = document.createElement("button"), frame = document.createElement("span");
      button.type = "button";
      button.className = "panel";
      frame.className = "frame";
      frame.append(picture(version, true));
      button.append(frame, caption(version.label, version.mark));
      button.addEventListener("click", () => pick(i));
      return button;
    }

    function caption(words, mark) {
      const line = document.createElement("span"), value = document.createElement("b");
      line.className = "caption";
      value.textContent = mark;
      line.append(words, value);
      return line;
    }

    function load(thumb) {
      const images = [...thumb.querySelectorAll("img")];
      versions = images.map((img) => ({ src: img.src, alt: img.alt, ...img.dataset }));
      native = Number(versions[0].width);
      root.style.setProperty("--ratio", native / Number(versions[0].height));
      for (const [side, name] of [["left", thumb.dataset.before], ["right", thumb.dataset.after]]) {
        picks[side].replaceChildren(...versions.map((version, i) => new Option(version.label, i)));
        picks[side].value = versions.findIndex((version) => version.name === name);
      }
      const blend = document.createElement("div"), frame = document.createElement("span");
      blend.className = "panel still";
      frame.className = "frame blend";
      blend.append(frame, caption("difference, × 8", ""));
      film.replaceChildren(...versions.map(panel), blend);
      find("id").textContent = thumb.dataset.id;
      find("note").textContent = thumb.dataset.note;
      Object.assign(view, { z: 1, x: 0, y: 0, split: 50 });
      root.hidden = false;
      show();
    }

    const held = new Map();
    let mode = "";
    const place = (event) => {
      const box = stage.getBoundingClientRect();
      return { x: ((event.clientX - box.left) / box.width) * 100, y: ((event.clientY - box.top) / box.height) * 100 };
    };
    const spread = ([a, b]) => Math.hypot(a.x - b.x, a.y - b.y);

    stage.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      stage.setPointerCapture(event.pointerId);
      held.set(event.pointerId, place(event));
      const box = handle.getBoundingClientRect();
      const near = Math.abs(event.clientX - (box.left + box.width / 2)) < 24;
      mode = held.size > 1 ? "pinch" : view.z === 1 || near ? "split" : "pan";
      if (mode === "split" && !difference.checked) {
        view.split = clamp(Math.round(place(event).x), 0, 100);
        paint();
      }
    });
    stage.addEventListener("pointermove", (event) => {
      if (!held.has(event.pointerId)) return;
      const old = [...held.values()], was = held.get(event.pointerId), now = place(event);
      held.set(event.pointerId, now);
      if (mode === "split" && !difference.checked) view.split = clamp(Math.round(now.x), 0, 100);
      if (mode === "pan") { view.x -= now.x - was.x; view.y -= now.y - was.y; }
      if (mode === "pinch" && held.size === 2) {
        const both = [...held.values()];
        zoomTo((view.z * spread(both)) / (spread(old) || 1), (both[0].x + both[1].x) / 2, (both[0].y + both[1].y) / 2);
      }
      paint();
    });
    for (const end of ["pointerup", "pointercancel"])
      stage.addEventListener(end, (event) => { held.delete(event.pointerId); if (!held.size) mode = ""; });
    stage.addEventListener("dblclick", (event) => {
      const at = place(event);
      zoomTo(view.z > 1 ? 1 : 4, at.x, at.y);
    });
    stage.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return; // a wheel alone scrolls the page
      event.preventDefault();
      const at = place(event);
      zoomTo(view.z * Math.exp(-event.deltaY / 200), at.x, at.y);
    }, { passive: false });
    stage.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, -5], ArrowDown: [0, 5] }[event.key];
      if (event.key === "+" || event.key === "=") zoomTo(view.z + 0.5);
      else if (event.key === "-") zoomTo(view.z - 0.5);
      else if (event.key === "0") zoomTo(1);
      else if (step && view.z > 1) { view.x += step[0]; view.y += step[1]; paint(); }
      else if (step && step[0]) { view.split = clamp(view.split + step[0], 0, 100); paint(); }
      else return;
      event.preventDefault();
    });
    divider.addEventListener("input", () => { view.split = Number(divider.value); paint(); });
    zoom.addEventListener("input", () => zoomTo(Number(zoom.value)));
    difference.addEventListener("change", paint);
    for (const side of ["left", "right"]) picks[side].addEventListener("change", show);
    find("reset").addEventListener("click", () => {
      difference.checked = false;
      Object.assign(view, { z: 1, x: 0, y: 0, split: 50 });
      paint();
    });
    window.addEventListener("resize", () => versions.length && paint());
    return load;
  }

  const thumbs = [...document.querySelectorAll(".thumb")];
  const first = document.getElementById("compare-first"), closer = document.getElementById("closer");
  if (first && thumbs.length) comparator(first)(thumbs[0]);
  if (closer) {
    const load = comparator(closer.querySelector(".compare"));
    let at = 0;
    const step = (by) => { at = (at + by + thumbs.length) % thumbs.length; load(thumbs[at]); };
    for (const [i, thumb] of thumbs.entries())
      thumb.addEventListener("click", () => { at = i; closer.showModal(); load(thumb); });
    for (const button of closer.querySelectorAll(".step"))
      button.addEventListener("click", () => step(Number(button.dataset.step)));
    closer.querySelector(".close").addEventListener("click", () => closer.close());
    closer.addEventListener("close", () => thumbs[at].focus());
  }
})();
