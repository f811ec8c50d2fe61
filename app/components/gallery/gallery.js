// The gallery of a run: a row a sampled step, a column a prompt, step 0 pinned above the newest step.
// Only the tiles in sight are in the page, so ten thousand of them scroll like ten.
// `data` is {runs, url, rewards: [{name, title, digits}], prompts, seeds, steps: [{step, tiles: [[file, scores] | null]}],
// selected: "step.index" | null}; steps rise. Streamlit calls the default export anew for each change of `data`.

const SIZES = { S: 76, M: 112, L: 176 };
const GAP = 8, LABEL = 118, HEAD = 62, MARGIN = 2;
const galleries = new WeakMap();

const element = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in node && name !== "style") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
};

const remembered = (name, fallback) => {
  try { return localStorage.getItem(`palate.gallery.${name}`) ?? fallback; } catch { return fallback; }
};
const remember = (name, value) => {
  try { localStorage.setItem(`palate.gallery.${name}`, value); } catch { /* private window: forget it */ }
};

class Gallery {
  constructor(root) {
    this.root = root;
    this.size = remembered("size", "M") in SIZES ? remembered("size", "M") : "M";
    this.order = "prompts";
    this.reward = null;
    this.selected = null;
    this.beside = remembered("beside", "no") === "yes";
    this.tell = () => {};
    this.find = (selector) => root.querySelector(selector);
    this.view = this.find(".view");
    this.dialog = this.find("dialog");
    this.view.addEventListener("scroll", () => this.drawSoon(), { passive: true });
    this.observer = new ResizeObserver(() => this.drawSoon());
    this.observer.observe(this.view);
    this.dialog.addEventListener("keydown", (event) => this.onKey(event));
    this.dialog.addEventListener("close", () => this.select(null));
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog || event.target === this.find(".stage")) this.dialog.close();
    });
    this.find(".close").onclick = () => this.dialog.close();
    this.find(".left").onclick = () => this.move(0, -1);
    this.find(".right").onclick = () => this.move(0, 1);
    this.find(".beside").onclick = () => this.toggleBeside();
  }

  update(data) {
    const first = !this.data;
    const before = this.data ? this.data.steps.length : 0;
    const sameRun = this.data && this.data.run === data.run;
    this.data = data;
    if (!sameRun) { this.order = "prompts"; this.selected = null; }
    if (!data.rewards.some((reward) => reward.name === this.reward)) {
      const kept = remembered("reward", "");
      this.reward = (data.rewards.find((reward) => reward.name === kept) ?? data.rewards[0])?.name ?? null;
    }
    this.arrange();
    // Newest comes first, so new rows push the others down: whoever reads further down must not notice.
    const added = data.steps.length - before;
    if (sameRun && added > 0 && this.view.scrollTop > 4) this.view.scrollTop += added * this.rowHeight;
    this.draw();
    if ((first || !sameRun) && data.selected) this.open(data.selected);
    else if (this.dialog.open) this.drawLightbox();
  }

  // --- what is where -------------------------------------------------------------------------------------------

  get rewardIndex() { return Math.max(0, this.data.rewards.findIndex((reward) => reward.name === this.reward)); }
  get rowHeight() { return SIZES[this.size] + GAP; }
  score(row, column) { return row?.tiles[column]?.[1]?.[this.rewardIndex] ?? null; }

  arrange() {
    const { steps, prompts } = this.data;
    this.base = steps.length && steps[0].step === 0 ? steps[0] : null;
    this.rows = steps.filter((row) => row !== this.base).reverse();
    this.columns = prompts.map((_, index) => index);
    const newest = this.rows[0];
    if (this.order === "gain" && newest && this.base) {
      const gain = (column) => (this.score(newest, column) ?? 0) - (this.score(this.base, column) ?? 0);
      this.columns.sort((a, b) => gain(b) - gain(a));
    }
  }

  mean(row) {
    const scores = this.columns.map((column) => this.score(row, column)).filter((score) => score !== null);
    return scores.length ? scores.reduce((sum, score) => sum + score, 0) / scores.length : null;
  }

  number(value) {
    if (value === null || value === undefined) return "–";
    return value.toFixed(this.data.rewards[this.rewardIndex]?.digits ?? 2);
  }

  // --- the grid ------------------------------------------------------------------------------------------------

  drawSoon() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = null; if (this.data) this.drawCells(); });
  }

  draw() { this.drawBar(); this.drawCells(); }

  drawBar() {
    const { steps, prompts, rewards } = this.data;
    const tiles = steps.length * prompts.length;
    this.find(".count").textContent = `${steps.length} sampled step${steps.length === 1 ? "" : "s"} × `
      + `${prompts.length} prompt${prompts.length === 1 ? "" : "s"} · ${tiles.toLocaleString("en")} images`;
    const choice = (group, options, current, choose) => {
      this.find(`${group} .choice`).replaceChildren(...options.map(([value, text]) => element("button", {
        type: "button", textContent: text, ariaPressed: String(value === current), onclick: () => choose(value),
      })));
      this.find(group).hidden = options.length < 2;
      this.find(group).style.display = options.length < 2 ? "none" : "";
    };
    choice(".rewards", rewards.map((reward) => [reward.name, reward.title]), this.reward,
      (value) => { this.reward = value; remember("reward", value); this.arrange(); this.draw(); });
    choice(".order", [["prompts", "As listed"], ["gain", "Most gained first"]], this.order,
      (value) => { this.order = value; this.arrange(); this.view.scrollLeft = 0; this.draw(); });
    choice(".size", Object.keys(SIZES).map((size) => [size, size]), this.size, (value) => {
      const ratio = this.view.scrollTop / this.rowHeight;
      this.size = value; remember("size", value); this.drawBar(); this.drawCells();
      this.view.scrollTop = ratio * this.rowHeight; this.drawCells();
    });
  }

  drawCells() {
    const pitch = this.rowHeight, tile = SIZES[this.size];
    const width = LABEL + this.columns.length * pitch + GAP;
    const head = HEAD + (this.base ? pitch + GAP / 2 : 0);
    const canvas = this.find(".canvas");
    canvas.style.width = `${width}px`;
    canvas.style.height = `${head + GAP + this.rows.length * pitch}px`;
    this.view.style.maxHeight = `${Math.max(420, Math.min(720, window.innerHeight - 140))}px`;
    const left = this.view.scrollLeft, wide = this.view.clientWidth || 1200;
    const from = Math.max(0, Math.floor((left - LABEL) / pitch) - MARGIN);
    const to = Math.min(this.columns.length, Math.ceil((left + wide) / pitch) + MARGIN);
    const columns = [...Array(Math.max(0, to - from)).keys()].map((offset) => from + offset);

    const prompts = this.find(".prompts");
    prompts.style.height = `${HEAD}px`;
    prompts.replaceChildren(...columns.map((place) => {
      const prompt = this.data.prompts[this.columns[place]];
      return element("div", { className: "prompt", textContent: prompt, title: prompt,
        style: `left:${LABEL + GAP + place * pitch - 4}px;width:${tile + 8}px` });
    }), this.corner());
    const base = this.find(".row.base");
    base.style.display = this.base ? "" : "none";
    base.style.height = `${pitch + GAP / 2}px`;
    if (this.base) this.fill(base, this.base, columns, 0);

    const above = Math.max(0, this.view.scrollTop), tall = this.view.clientHeight || 720;
    const start = Math.max(0, Math.floor(above / pitch) - MARGIN);
    const end = Math.min(this.rows.length, Math.ceil((above + tall - head) / pitch) + MARGIN);
    const holder = this.find(".rows");
    const drawn = new Map([...holder.children].map((node) => [Number(node.dataset.step), node]));
    const keep = [];
    for (let index = start; index < end; index += 1) {
      const row = this.rows[index];
      const node = drawn.get(row.step) ?? element("div", { className: "row" });
      node.dataset.step = row.step;
      node.classList.toggle("newest", index === 0);
      node.style.top = `${head + GAP + index * pitch}px`;
      node.style.height = `${pitch}px`;
      node.style.width = `${width}px`;
      this.fill(node, row, columns, 0);
      keep.push(node);
    }
    holder.replaceChildren(...keep);
  }

  corner() {
    const node = element("div", { className: "label" });
    node.style.cssText = `width:${LABEL}px;height:${HEAD}px`;
    return node;
  }

  fill(node, row, columns, top) {
    const pitch = this.rowHeight, tile = SIZES[this.size];
    const old = new Map([...node.children].map((child) => [child.dataset.key, child]));
    const cells = [this.rowLabel(row)];
    for (const place of columns) {
      const column = this.columns[place], entry = row.tiles[column];
      const key = `${column}:${entry ? entry[0] : ""}`;
      const cell = old.get(key) ?? this.tile(row, column, entry);
      cell.dataset.key = key;
      cell.style.cssText = `left:${LABEL + GAP + place * pitch}px;top:${top}px;width:${tile}px;height:${tile}px`;
      this.drawScore(cell, row, column);
      cells.push(cell);
    }
    // Nodes that stay are left where they are: moving an <img> would make it flicker.
    for (const child of [...node.children]) if (!cells.includes(child)) child.remove();
    for (const cell of cells) if (cell.parentNode !== node) node.append(cell);
  }

  rowLabel(row) {
    const mean = this.mean(row), base = this.base ? this.mean(this.base) : null;
    const label = element("div", { className: "label" });
    label.style.width = `${LABEL}px`;
    label.style.height = `${SIZES[this.size]}px`;
    label.append(element("div", { className: "step", textContent: `Step ${row.step}` }));
    const title = this.data.rewards[this.rewardIndex]?.title ?? "";
    if (mean !== null) label.append(element("div", { className: "small", title: `Mean ${title} of the row`,
      textContent: `mean ${this.number(mean)}` }));
    if (row === this.base) label.append(element("div", { className: "small dim", textContent: "base model" }));
    else if (mean !== null && base !== null) {
      const gain = mean - base;
      label.append(element("div", { className: `small ${gain >= 0 ? "better" : "worse"}`,
        textContent: `${gain >= 0 ? "+" : "−"}${this.number(Math.abs(gain))}` }));
    }
    return label;
  }

  tile(row, column, entry) {
    if (!entry) return element("div", { className: "tile missing", textContent: "no image" });
    const image = element("img", { loading: "lazy", decoding: "async", alt: this.data.prompts[column],
      src: `${this.data.url}${entry[0]}` });
    const node = element("button", { type: "button", className: "tile",
      onclick: () => this.open(`${row.step}.${column}`) }, image);
    node.append(element("span", { className: "score" }));
    return node;
  }

  drawScore(cell, row, column) {
    const score = this.score(row, column), label = cell.querySelector(".score");
    cell.classList.toggle("last", this.selected === `${row.step}.${column}`);
    if (!label) return;
    const base = this.score(this.base, column);
    const gain = row === this.base || base === null || score === null ? 0 : score - base;
    const least = 10 ** -(this.data.rewards[this.rewardIndex]?.digits ?? 2);
    label.textContent = score === null ? "–" : this.number(score);
    label.className = `score${gain >= least ? " up" : gain <= -least ? " down" : ""}`;
    cell.setAttribute("aria-label", `Step ${row.step}, ${this.data.prompts[column]}, score ${label.textContent}`);
  }

  // --- the lightbox --------------------------------------------------------------------------------------------

  select(selected) {
    this.selected = selected;
    clearTimeout(this.telling);
    this.telling = setTimeout(() => this.tell(this.selected), 350);
    this.drawCells();
  }

  open(selected) {
    const [step, column] = String(selected).split(".").map(Number);
    const row = this.data.steps.find((candidate) => candidate.step === step);
    if (!row || !row.tiles[column]) return;
    this.select(`${step}.${column}`);
    if (!this.dialog.open) this.dialog.showModal();
    this.drawLightbox();
  }

  here() {
    const [step, column] = this.selected.split(".").map(Number);
    return { rowIndex: this.data.steps.findIndex((row) => row.step === step), place: this.columns.indexOf(column) };
  }

  move(rows, places) {
    if (!this.selected) return;
    const { rowIndex, place } = this.here();
    const row = this.data.steps[rowIndex + rows], column = this.columns[place + places];
    if (row && column !== undefined && row.tiles[column]) this.open(`${row.step}.${column}`);
  }

  toggleBeside() {
    this.beside = !this.beside;
    remember("beside", this.beside ? "yes" : "no");
    this.drawLightbox();
  }

  onKey(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };
    if (moves[event.key]) this.move(...moves[event.key]);
    else if (event.key === "b" || event.key === "B") this.toggleBeside();
    else if (event.key !== "Escape" && event.key !== "Enter" && event.key !== " " && event.key !== "Tab") return;
    if (moves[event.key]) event.preventDefault();
    event.stopPropagation();  // Streamlit has keys of its own
  }

  drawLightbox() {
    if (!this.selected) return;
    const { rowIndex, place } = this.here();
    const row = this.data.steps[rowIndex], column = this.columns[place];
    if (!row || column === undefined) return;
    const prompt = this.data.prompts[column];
    const figure = (of, caption) => element("figure", {},
      element("img", { src: `${this.data.url}${of.tiles[column][0]}?full=1`, alt: prompt }),
      element("figcaption", { textContent: caption }));
    const two = this.beside && this.base && row !== this.base && this.base.tiles[column];
    const stage = this.find(".stage");
    stage.className = `stage ${two ? "two" : "one"}`;
    stage.replaceChildren(...(two ? [figure(this.base, "step 0 · base model")] : []),
      figure(row, row === this.base ? "step 0 · base model" : `step ${row.step}`));
    const facts = element("div", { className: "facts" },
      element("span", {}, element("b", { textContent: `Step ${row.step}` })),
      element("span", { textContent: `seed ${this.data.seeds[column]}` }));
    this.data.rewards.forEach((reward, index) => {
      const score = row.tiles[column][1][index], base = this.base?.tiles[column]?.[1]?.[index];
      const line = element("span", {}, `${reward.title} `,
        element("b", { textContent: score === null || score === undefined ? "–" : score.toFixed(reward.digits) }));
      if (row !== this.base && typeof base === "number" && typeof score === "number") {
        const gain = score - base;
        line.append(" ", element("span", { className: gain >= 0 ? "better" : "worse",
          textContent: `${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(reward.digits)} over step 0` }));
      }
      facts.append(line);
    });
    this.find(".foot").replaceChildren(element("div", { className: "text", textContent: prompt }), facts,
      element("div", { className: "keys", textContent: "← → prompt · ↑ later step · ↓ earlier step · b beside step 0 · Esc close" }));
    this.find(".left").disabled = place === 0;
    this.find(".right").disabled = place === this.columns.length - 1;
    this.find(".beside").ariaPressed = String(Boolean(this.beside));
  }

  close() {
    this.observer.disconnect();
    clearTimeout(this.telling);
    if (this.dialog.open) this.dialog.close();
  }
}

export default function ({ data, parentElement, setStateValue }) {
  const root = parentElement.querySelector(".gallery");
  if (!root || !data) return undefined;
  let gallery = galleries.get(root);
  if (!gallery) { gallery = new Gallery(root); galleries.set(root, gallery); }
  // "" and not null: to Python null is what it was before anything was opened, and so no change.
  gallery.tell = (selected) => setStateValue("selected", selected ?? "");
  gallery.update(data);
  return undefined;
}
