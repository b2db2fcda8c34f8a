"use strict";
(() => {
  const settings = JSON.parse(document.body.dataset.settings);
  const element = (id) => document.getElementById(id);
  const drop = element("drop"), results = element("results"), status = element("status");
  const MOST_CARDS = 30, AT_ONCE = 2, TRIES = 4;
  const waiting = [];
  let running = 0;

  const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1" : (100 * share).toFixed(1)) + "\u00a0%";
  const show = (node, text) => { if (text !== undefined) node.textContent = text; node.hidden = false; };

  /* The answer to a photo, or an Error that says in words why there is none. */
  async function ask(file, query) {
    for (let attempt = 1; ; attempt++) {
      const form = new FormData();
      form.append("file", file, file.name || "photo");
      let response, said;
      try {
        response = await fetch("/predict?" + query, { method: "POST", body: form, credentials: "same-origin" });
        said = await response.json();
      } catch {
        throw new Error("The server does not answer. Is it still running, and this device in its network?");
      }
      if (response.ok) return said.predictions[0];
      if ((response.status === 429 || response.status === 503) && attempt < TRIES) {
        const seconds = Number(response.headers.get("retry-after")) || 1;
        await new Promise((done) => setTimeout(done, 1000 * Math.min(seconds, 5)));
        continue;
      }
      if (response.status === 401) throw new Error("The server asks for its token again: open the address with the token.");
      if (said.predictions) throw new Error("This photo cannot be read: " + said.predictions[0].error + ".");
      throw new Error(said.message);
    }
  }

  function addCard(file) {
    const card = element("card").content.firstElementChild.cloneNode(true);
    const photo = card.querySelector(".photo-itself");
    photo.alt = "Your photo " + file.name;
    photo.src = URL.createObjectURL(file);
    photo.addEventListener("error", () => { photo.hidden = true; photo.classList.add("broken"); card.querySelector(".picture").classList.add("no-preview"); });
    card.querySelector(".file").textContent = file.name;
    results.prepend(card);
    while (results.children.length > MOST_CARDS) {
      URL.revokeObjectURL(results.lastElementChild.querySelector(".photo-itself").src);
      results.lastElementChild.remove();
    }
    return card;
  }

  function fail(card, message) {
    card.querySelector(".waiting").hidden = true;
    show(card.querySelector(".error"), message);
    status.textContent = message;
  }

  function drawBar({ class: name, probability }, isSaid) {
    const item = document.createElement("li");
    item.classList.toggle("is-said", isSaid);
    const line = document.createElement("div"), track = document.createElement("div"), fill = document.createElement("div");
    line.className = "line"; track.className = "track"; fill.className = "fill";
    const label = document.createElement("span"), value = document.createElement("span");
    label.className = "name"; value.className = "number";
    label.textContent = name;
    value.textContent = percent(probability);
    fill.style.width = 100 * probability + "%";
    track.setAttribute("aria-hidden", "true");
    track.append(fill);
    if (settings.several) {
      const cut = settings.thresholds[name], mark = document.createElement("div");
      mark.className = "cut";
      mark.style.left = "calc(" + 100 * cut + "% - 1px)";
      track.append(mark);
      value.textContent += isSaid ? ", reaches " + percent(cut) : ", needs " + percent(cut);
    }
    line.append(label, value);
    item.append(line, track);
    return item;
  }

  function draw(card, said) {
    card.querySelector(".waiting").hidden = true;
    const chosen = settings.several ? said.labels : [said.top[0].class];
    const answer = card.querySelector(".answer");
    show(answer, chosen.length ? chosen.join(", ") : "none of its labels");
    if (!settings.several) {
      const value = document.createElement("span");
      value.className = "number";
      value.textContent = percent(said.top[0].probability);
      answer.append(value);
    }
    const bars = card.querySelector(".bars");
    bars.replaceChildren(...said.top.map((each) => drawBar(each, chosen.includes(each.class))));
    bars.hidden = false;
    show(card.querySelector(".how"), (settings.several ? "The mark is the threshold of a label. " : "") +
      (said.calibrated ? "Calibrated probabilities." : "Probabilities are not calibrated."));
    card.querySelector(".look").hidden = !settings.heatmap;
    status.textContent = (chosen.join(", ") || "none of its labels") + (settings.several ? "" : ", " + percent(said.top[0].probability));
  }

  async function look(card, file, chosen) {
    const button = card.querySelector(".look"), heat = card.querySelector(".heat"), photo = card.querySelector(".photo-itself");
    const caption = card.querySelector(".file"), error = card.querySelector(".look-error");
    if (!heat.src) {
      button.disabled = true;
      error.hidden = true;
      try {
        heat.src = (await ask(file, "top_k=1&heatmap=true")).heatmap;
        heat.alt = "What the network saw of the photo, bright where it looked for " + chosen;
      } catch (problem) {
        show(error, problem.message);
        return;
      } finally {
        button.disabled = false;
      }
    }
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "Show the photo" : "Show where it looked";
    heat.hidden = !on;
    const broken = photo.classList.contains("broken");
    photo.hidden = on || broken;
    card.querySelector(".picture").classList.toggle("no-preview", broken && !on);
    caption.textContent = on ? "What the network saw of it; bright: what spoke for " + chosen : file.name;
  }

  async function work({ file, card }) {
    try {
      if (file.size > settings.maxBytes) {
        throw new Error("This photo has " + (file.size / 2 ** 20).toFixed(1) + " MiB; " + (settings.maxBytes / 2 ** 20) + " are allowed.");
      }
      if (!file.size) throw new Error("This file is empty.");
      const said = await ask(file, "top_k=" + settings.bars);
      draw(card, said);
      card.querySelector(".look").addEventListener("click", () => look(card, file, said.top[0].class));
    } catch (problem) {
      fail(card, problem.message);
    }
  }

  function start() {
    while (running < AT_ONCE && waiting.length) {
      running++;
      work(waiting.shift()).finally(() => { running--; start(); });
    }
  }

  function add(files) {
    const photos = [...files].slice(0, MOST_CARDS);
    if (!photos.length) return;
    status.textContent = "Looking ...";
    waiting.push(...photos.reverse().map((file) => ({ file, card: addCard(file) })).reverse());
    start();
    results.firstElementChild.scrollIntoView({ block: "nearest" });
  }

  for (const id of ["files", "camera"]) {
    element(id).addEventListener("change", (event) => { add(event.target.files); event.target.value = ""; });
  }
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    add(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => add(event.clipboardData.files));
})();
