"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (selector, inside = document) => inside.querySelector(selector);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const collator = new Intl.Collator("en", { numeric: true });

  function text(value, kind) {
    if (value === null) return "–";
    if (kind === "score") return value.toFixed(5);
    if (kind === "gain") return (value < 0 ? "" : "+") + value.toFixed(5);
    if (kind === "seconds") return value.toFixed(1);
    return String(value);
  }

  function make(tag, attributes = {}, content = "") {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = content;
    return element;
  }

  // Values that are missing come last, whichever the direction.
  function sorted(rows, values, descending) {
    const sign = descending ? -1 : 1;
    return [...rows].sort((a, b) => {
      const x = values[a], y = values[b];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      const order = typeof x === "number" ? x - y : collator.compare(x, y);
      return sign * order || a - b;
    });
  }

  class DataTable {
    constructor(element, table) {
      this.table = table;
      this.body = one("tbody", element);
      this.heads = all("thead th", element);
      this.pager = one(`[data-pager="${element.dataset.table}"]`);
      this.rows = [...table.values[table.columns[0][0]].keys()];
      this.key = null;
      this.descending = false;
      this.page = 0;
      for (const head of this.heads) {
        const button = make("button", { type: "button" }, head.textContent);
        head.replaceChildren(button);
        head.setAttribute("aria-sort", "none");
        button.addEventListener("click", () => {
          const again = this.key === head.dataset.key;
          this.sort(head.dataset.key, again && !this.descending);
          this.changed?.();
        });
      }
      this.previous = this.button("Previous", -1);
      this.status = make("span", { class: "soft" });
      this.next = this.button("Next", 1);
      this.pager?.replaceChildren(this.previous, this.status, this.next);
      this.draw();
    }
    button(name, step) {
      const button = make("button", { type: "button" }, name);
      button.addEventListener("click", () => { this.page += step; this.draw(); });
      return button;
    }
    sort(key, descending) {
      this.key = key;
      this.descending = descending;
      for (const head of this.heads) {
        const mine = head.dataset.key === key;
        head.setAttribute("aria-sort", !mine ? "none" : descending ? "descending" : "ascending");
      }
      this.show(sorted(this.rows, this.table.values[key], descending));
    }
    show(rows) {
      this.rows = rows;
      this.page = 0;
      this.draw();
    }
    draw() {
      const size = this.table.shown, start = this.page * size;
      const shown = this.rows.slice(start, start + size);
      this.body.replaceChildren(...shown.map((row) => {
        const line = make("tr");
        this.table.columns.forEach(([key, , kind], i) => {
          const cell = i ? make("td") : make("th", { scope: "row" });
          cell.className = kind;
          cell.textContent = text(this.table.values[key][row], kind);
          line.append(cell);
        });
        return line;
      }));
      if (!this.pager) return;
      this.pager.hidden = this.rows.length <= size;
      this.previous.disabled = start === 0;
      this.next.disabled = start + size >= this.rows.length;
      this.status.textContent = `${start + 1} to ${start + shown.length} of ${this.rows.length}`;
    }
  }

  const tables = {};
  for (const element of all("[data-table]")) {
    const name = element.dataset.table;
    tables[name] = new DataTable(element, data.tables[name]);
  }

  const form = one("[data-filters]");
  if (form) photos(tables.photos, form);

  function photos(list, form) {
    const { columns, values } = list.table;
    const every = list.rows;
    const scores = columns.filter(([, , kind]) => kind === "score" || kind === "gain");
    const main = data.main;
    const kindOf = Object.fromEntries(columns.map(([key, heading, kind]) => [key, { heading, kind }]));
    one("[data-score]", form).textContent = kindOf[main].heading;
    const facets = ["fold", "group", "view"].filter((name) => {
      const select = form.elements[name];
      const found = values[name] ? [...new Set(values[name])].filter((v) => v !== null) : [];
      // Of thousands of groups the search finds one sooner than a list.
      const useful = found.length > 1 && found.length <= 500;
      select.parentElement.hidden = !useful;
      if (!useful) select.parentElement.style.display = "none";
      else for (const value of found.sort(collator.compare)) select.add(new Option(value, value));
      return useful;
    });
    const order = form.elements.order;
    const name = kindOf[main].heading;
    const words = data.gained ? ["lost most first", "gained most first"] : ["worst first", "best first"];
    order.add(new Option(`${name}, ${words[0]}`, `${main} up`));
    order.add(new Option(`${name}, ${words[1]}`, `${main} down`));
    order.add(new Option("random", "random"));
    for (const [key, heading, kind] of columns) {
      if (key === main) continue;
      order.add(new Option(kind === "text" ? heading : `${heading}, lowest first`, `${key} up`));
      if (kind !== "text") order.add(new Option(`${heading}, highest first`, `${key} down`));
    }

    // The same order each time the page is opened.
    const shuffled = values[columns[0][0]].map((_, i) => ((i + 1) * 2654435761) % 4294967296);
    const gallery = one("[data-gallery]") && new Gallery(data.gallery, list.table, main);

    function apply(key, descending) {
      const given = (field) => form.elements[field].value.trim();
      const search = given("search").toLowerCase(), low = given("from"), high = given("to");
      const rows = every.filter((row) =>
        facets.every((field) => ["", values[field][row]].includes(form.elements[field].value)) &&
        (!search || ["id", "group", ...data.details].some((field) => values[field]?.[row]?.toLowerCase().includes(search))) &&
        (low === "" || values[main][row] >= Number(low)) &&
        (high === "" || values[main][row] <= Number(high)));
      list.rows = rows;
      if (key) list.sort(key, descending);
      else {
        for (const head of list.heads) head.setAttribute("aria-sort", "none");
        list.key = null;
        list.show(sorted(rows, shuffled, false));
      }
      gallery?.show(list.rows);
      const pictures = gallery && gallery.rows.length < rows.length ? `, ${gallery.rows.length} with pictures` : "";
      one("[data-count]").textContent = `${rows.length} of ${every.length} photos${pictures}`;
    }
    function ordered() {
      const [key, direction] = order.value.split(" ");
      if (key === "random") apply(null, false);
      else apply(key, direction === "down");
    }
    list.changed = () => {
      const wanted = `${list.key} ${list.descending ? "down" : "up"}`;
      if ([...order.options].some((option) => option.value === wanted)) order.value = wanted;
      apply(list.key, list.descending);
    };
    form.addEventListener("input", ordered);
    form.addEventListener("reset", () => setTimeout(ordered));
    form.addEventListener("submit", (event) => event.preventDefault());
    ordered();
  }

  function Gallery(gallery, table, main) {
    const place = one("[data-gallery]"), more = one("[data-more]"), batch = 24;
    const drawn = new Map(gallery.rows.map((row, i) => [row, gallery.worst_part[i]]));
    const kind = table.columns.find(([key]) => key === main)[2];
    const path = (row, file) => `${gallery.folder}/${String(row).padStart(5, "0")}-${file}`;
    const title = (row) => `${table.values.id[row]}, ${data.score} ${text(table.values[main][row], kind)}`;
    this.rows = [];
    let shown = 0;
    const viewer = new Viewer(this, path, title, drawn, gallery);

    const card = (row, number) => {
      const button = make("button", { type: "button" });
      const image = make("img", { loading: "lazy", decoding: "async", width: 604, height: 404 });
      image.alt = "";
      image.src = path(row, "thumb.jpg");
      const label = make("span", {}, `${table.values.id[row]} `);
      label.append(make("b", {}, text(table.values[main][row], kind)));
      button.append(image, label);
      for (const key of data.details) {
        const value = text(table.values[key]?.[row] ?? null);
        button.append(make("span", { class: "soft" }, `${key}: ${value}`));
      }
      button.addEventListener("click", () => viewer.open(number));
      return button;
    };
    const grow = () => {
      const next = this.rows.slice(shown, shown + batch);
      place.append(...next.map((row, i) => card(row, shown + i)));
      shown += next.length;
      more.hidden = shown >= this.rows.length;
    };
    more.addEventListener("click", () => {
      const first = shown;
      grow();
      place.children[first]?.focus();
    });
    this.show = (rows) => {
      this.rows = rows.filter((row) => drawn.has(row));
      shown = 0;
      place.replaceChildren();
      grow();
    };
  }

  function Viewer(owner, path, title, drawn, gallery) {
    const dialog = one("[data-viewer]"), stage = one(".stage", dialog), layers = one(".layers", dialog);
    const photo = one("[data-part=photo]", dialog), mask = one("[data-part=mask]", dialog);
    const slide = one("[name=slide]", dialog), clear = one("[name=clear]", dialog);
    let number = 0, scale = 1, x = 0, y = 0;

    const place = () => {
      const width = stage.clientWidth, height = stage.clientHeight;
      x = Math.min(0, Math.max(width - width * scale, x));
      y = Math.min(0, Math.max(height - height * scale, y));
      layers.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
      layers.classList.toggle("near", scale > 4);
      reveal();
    };
    // The picture may be smaller than the stage on two sides: shares are those of the picture.
    const frame = () => {
      const width = stage.clientWidth, height = stage.clientHeight;
      const ratio = photo.naturalWidth ? photo.naturalWidth / photo.naturalHeight : width / height;
      const w = Math.min(width, height * ratio), h = w / ratio;
      return { left: (width - w) / 2, top: (height - h) / 2, w, h };
    };
    const reveal = () => {
      if (!slide) return;
      const { left, w } = frame();
      const edge = left + w * (1 - slide.value / 100);
      mask.style.clipPath = `inset(0 0 0 ${edge}px)`;
      mask.style.opacity = clear.checked ? 0.5 : 1;
    };
    const zoom = (factor, at) => {
      const before = scale;
      scale = Math.min(40, Math.max(1, scale * factor));
      const px = at ? at.x : stage.clientWidth / 2, py = at ? at.y : stage.clientHeight / 2;
      x = px - (px - x) * scale / before;
      y = py - (py - y) * scale / before;
      place();
    };
    const fit = () => { scale = 1; x = y = 0; place(); };
    const worst = () => {
      const [l, t, w, h] = drawn.get(owner.rows[number]), box = frame();
      scale = Math.min(40, stage.clientWidth / (w * box.w), stage.clientHeight / (h * box.h));
      scale = Math.max(1, scale);
      x = stage.clientWidth / 2 - (box.left + (l + w / 2) * box.w) * scale;
      y = stage.clientHeight / 2 - (box.top + (t + h / 2) * box.h) * scale;
      place();
    };
    const layer = () => {
      const chosen = one("[name=layer]:checked", dialog)?.value;
      if (!chosen) return;
      mask.src = path(owner.rows[number], chosen);
      mask.alt = gallery.layers.find(([file]) => file === chosen)[1];
    };
    const turn = (step) => {
      number = (number + step + owner.rows.length) % owner.rows.length;
      const row = owner.rows[number];
      photo.src = path(row, "photo.jpg");
      photo.alt = `Photo ${title(row)}`;
      one("#viewer-title").textContent = `${title(row)} (${number + 1} of ${owner.rows.length})`;
      layer();
      fit();
    };
    this.open = (at) => { number = at; dialog.showModal(); turn(0); };

    const actions = {
      close: () => dialog.close(), previous: () => turn(-1), next: () => turn(1),
      in: () => zoom(1.5), out: () => zoom(1 / 1.5), fit, worst,
    };
    for (const button of all("[data-do]", dialog)) button.addEventListener("click", actions[button.dataset.do]);
    for (const radio of all("[name=layer]", dialog)) radio.addEventListener("change", layer);
    slide?.addEventListener("input", reveal);
    clear?.addEventListener("change", reveal);
    photo.addEventListener("load", place);
    addEventListener("resize", () => dialog.open && place());
    dialog.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own
      const typed = event.target.matches("input");
      const move = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
      if (event.target === stage && move) { x += move[0]; y += move[1]; place(); }
      else if (!typed && event.key === "ArrowLeft") turn(-1);
      else if (!typed && event.key === "ArrowRight") turn(1);
      else if (event.key === "+" || event.key === "=") zoom(1.5);
      else if (event.key === "-") zoom(1 / 1.5);
      else if (event.key === "0") fit();
      else return;
      event.preventDefault();
    });
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = stage.getBoundingClientRect();
      zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, { x: event.clientX - box.left, y: event.clientY - box.top });
    }, { passive: false });
    const fingers = new Map();
    stage.addEventListener("pointerdown", (event) => {
      fingers.set(event.pointerId, event);
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
      if (other) {
        const far = (point) => Math.hypot(point.clientX - other.clientX, point.clientY - other.clientY) || 1;
        const box = stage.getBoundingClientRect();
        zoom(far(event) / far(before), { x: (event.clientX + other.clientX) / 2 - box.left, y: (event.clientY + other.clientY) / 2 - box.top });
      } else { x += event.clientX - before.clientX; y += event.clientY - before.clientY; place(); }
      fingers.set(event.pointerId, event);
    });
    for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
})();
