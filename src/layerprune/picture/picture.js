"use strict";
/* The picture of a network: zoom, collapse, search, keyboard, repeated blocks.
   Sends from the figure: layerprune:group {group, pinned}; group is null when the pointer leaves.
   Takes at the figure: layerprune:mark {groups}, the groups that go; layerprune:show {group}. */
(() => {
  const CLASSES = /\b(i\d|critical|calibration|unknown)\b/;
  const CLOSED = 44; // height of a collapsed region
  const all = (root, query) => [...root.querySelectorAll(query)];

  /* What is left of a coordinate when some intervals are taken out. */
  const squeeze = (cuts) => (at) => {
    let less = 0;
    for (const [low, high] of cuts) {
      if (at <= low) break;
      less += Math.min(at, high) - low;
    }
    return at - less;
  };
  /* Intervals of `cuts` that meet none of `kept`, in order. */
  const without = (cuts, kept) => {
    const sorted = [...kept].sort((a, b) => a[0] - b[0]);
    const found = [];
    for (let [low, high] of [...cuts].sort((a, b) => a[0] - b[0])) {
      if (found.length) low = Math.max(low, found[found.length - 1].end);
      const end = high;
      for (const [from, to] of sorted) {
        if (to <= low || from >= high) continue;
        if (from > low) found.push([low, from]);
        low = Math.max(low, to);
      }
      if (high > low) found.push([low, high]);
      if (found.length) found[found.length - 1].end = end;
    }
    return found;
  };

  class Picture {
    constructor(figure) {
      this.figure = figure;
      this.svg = figure.querySelector("svg");
      this.canvas = figure.querySelector(".lp-canvas");
      const [, , width, height] = this.svg.getAttribute("viewBox").split(" ").map(Number);
      this.full = { width, height };
      this.pinned = null;
      this.measure();
      for (const region of this.regions) {
        region.setAttribute("aria-expanded", "true");
        const title = region.querySelector(":scope > .lp-title");
        title.insertBefore(document.createTextNode("▾ "), title.firstChild);
        region.lpWidth = title.getComputedTextLength() + 26;
      }
      for (const item of all(this.svg, "[role=treeitem]")) item.tabIndex = -1;
      const first = this.svg.querySelector("[role=treeitem]");
      if (first) first.tabIndex = 0;
      all(this.svg, ".lp-repeat").forEach((repeat) => this.showRow(repeat, 0));
      this.listen();
      this.reset();
    }

    /* ---- collapse: intervals of the drawing that only collapsed regions need are taken out ---- */

    measure() {
      const number = (node, key) => Number(node.getAttribute(key));
      const frameOf = (node) => {
        const frame = node.querySelector(":scope > .lp-frame");
        return { x: number(frame, "x"), y: number(frame, "y"), w: number(frame, "width"), h: number(frame, "height") };
      };
      this.regions = all(this.svg, ".lp-region, .lp-repeat");
      this.frames = all(this.svg, ".lp-frame").map((node) => ({ node, owner: node.parentNode, ...frameOf(node.parentNode) }));
      this.boxes = all(this.svg, ".lp-box, .lp-cell").map((node) => {
        const rect = node.querySelector("rect");
        const [x, y] = node.getAttribute("transform").match(/-?[\d.]+/g).map(Number);
        return { node, x, y, w: number(rect, "width"), h: number(rect, "height") };
      });
      this.texts = all(this.svg, ".lp-title, .lp-row").map((node) => ({ node, x: number(node, "x"), y: number(node, "y") }));
      for (const { node, x } of this.texts) node.lpX = x;
      this.paths = all(this.svg, ".lp-edge, .lp-head").map((node) => {
        let x = 0;
        let y = 0;
        const steps = [...node.getAttribute("d").matchAll(/([A-Za-z])([^A-Za-z]*)/g)].map(([, command, rest]) => {
          const numbers = (rest.match(/-?[\d.]+/g) || []).map(Number);
          const points = [];
          if (command === "H") points.push([(x = numbers[0]), y]);
          else if (command === "V") points.push([x, (y = numbers[0])]);
          else if ("MLC".includes(command)) {
            for (let i = 0; i < numbers.length; i += 2) points.push([(x = numbers[i]), (y = numbers[i + 1])]);
          } else if (command === "v") y += numbers[0];
          return { command, rest, points };
        });
        return { node, steps };
      });
      const root = { x: 0, y: 0, w: Infinity, h: Infinity, parent: null };
      this.zones = [root];
      for (const node of all(this.svg, "[data-columns]")) {
        for (const part of node.dataset.columns.split(";")) {
          const [x, y, w, h] = part.split(" ").map(Number);
          this.zones.push({ x, y, w, h, parent: this.zoneAt(x + 1, y - 1) });
        }
      }
    }

    zoneAt(x, y) {
      for (let i = this.zones.length - 1; i > 0; i--) {
        const zone = this.zones[i];
        if (x >= zone.x && x <= zone.x + zone.w && y >= zone.y && y <= zone.y + zone.h) return zone;
      }
      return this.zones[0];
    }

    isVisible(node) {
      return !node.parentNode.closest(".lp-collapsed");
    }

    layOut() {
      const keptX = [];
      const cutX = [];
      for (const zone of this.zones) {
        zone.kept = [];
        zone.cuts = [];
      }
      for (const { node, x, y, w, h } of this.boxes) {
        if (!this.isVisible(node)) continue;
        const pad = node.classList.contains("lp-cell") ? 2 : 12;
        this.zoneAt(x, y).kept.push([y - pad, y + h + pad]);
        keptX.push([x - 8, x + w + 8]);
      }
      for (const { owner, x, y, w, h } of this.frames) {
        if (!this.isVisible(owner)) continue;
        const zone = this.zoneAt(x + 1, y + 1);
        const isCollapsed = owner.classList.contains("lp-collapsed");
        const isWide = Math.min(w, Math.max(100, owner.lpWidth || 0));
        zone.kept.push([y - 12, y + CLOSED], [y + h, y + h + 12]);
        keptX.push([x - 8, x + isWide], [x + w, x + w + 8]);
        const title = owner.querySelector(":scope > .lp-title");
        if (!isCollapsed && title) {
          const at = title.lpX;
          keptX.push([at - 4, at + (owner.lpWidth || 0) - 14]);
        }
        if (isCollapsed) {
          zone.cuts.push([y + CLOSED, y + h]);
          cutX.push([x + isWide, x + w]);
        }
      }
      for (const { node, steps } of this.paths) {
        if (!this.isVisible(node) || node.parentNode.classList.contains("lp-collapsed")) continue;
        for (const { command, points } of steps) {
          for (const [x, y] of points) {
            keptX.push([x - 5, x + 5]);
            if (command === "H") this.zoneAt(x, y).kept.push([y - 8, y + 8]);
          }
        }
      }
      for (const zone of [...this.zones].reverse()) {
        zone.cuts = without(zone.cuts, zone.kept);
        zone.less = zone.cuts.reduce((sum, [low, high]) => sum + high - low, 0);
        const above = zone.parent;
        if (!above) continue;
        const end = zone.y + zone.h;
        const last = Math.max(zone.y, ...zone.kept.map(([, high]) => high)) + 10;
        const empty = without([[last, end]], zone.cuts).reduce((sum, [low, high]) => sum + high - low, 0);
        zone.spare = zone.less + Math.max(empty, 0);
        const beside = this.zones.filter((other) => other.parent === above && other.y === zone.y && other.h === zone.h);
        if (beside[0] === zone) { // the last of them to come by
          const least = Math.min(...beside.map((other) => other.spare));
          if (least > 0) above.cuts.push([end - least, end]);
        }
      }
      for (const zone of this.zones) {
        const own = squeeze(zone.cuts);
        zone.map = zone.parent ? (y) => zone.parent.map(zone.y) + own(y) - zone.y : own;
      }
      this.place(squeeze(without(cutX, keptX)), (x, y) => this.zoneAt(x, y).map(y));
    }

    place(toX, toY) {
      const text = (value) => String(Math.round(value * 10) / 10);
      for (const { node, x, y } of this.boxes) node.setAttribute("transform", `translate(${text(toX(x))} ${text(toY(x, y))})`);
      for (const { node, x, y } of this.texts) {
        node.setAttribute("x", text(toX(x)));
        node.setAttribute("y", text(toY(x, y)));
      }
      for (const { node, owner, x, y, w, h } of this.frames) {
        const zone = this.zoneAt(x + 1, y + 1);
        const top = zone.map(y);
        const isCollapsed = owner.classList.contains("lp-collapsed");
        node.setAttribute("x", text(toX(x)));
        node.setAttribute("y", text(top));
        node.setAttribute("width", text(toX(x + w) - toX(x)));
        node.setAttribute("height", text(zone.map(y + h) - top));
        if (!isCollapsed) continue;
        const title = owner.querySelector(":scope > .lp-title");
        title.setAttribute("x", text(toX(x) + 12));
        title.setAttribute("y", text(top + 16));
        this.drawStrip(owner, toX(x) + 12, top + 24, toX(x + w) - toX(x) - 24);
      }
      for (const { node, steps } of this.paths) {
        const parts = steps.map(({ command, rest, points }) => {
          if (!points.length) return command + rest;
          const moved = points.map(([x, y]) => [text(toX(x)), text(toY(x, y))]);
          if (command === "H") return "H" + moved[0][0];
          if (command === "V") return "V" + moved[0][1];
          return command + moved.map((pair) => pair.join(" ")).join(" ");
        });
        node.setAttribute("d", parts.join(""));
      }
      const root = this.frames[0].node;
      this.size = {
        width: Number(root.getAttribute("width")) + this.full.width - this.frames[0].w,
        height: Number(root.getAttribute("height")) + this.full.height - this.frames[0].h,
      };
    }

    collapse(region, isClosed) {
      if (!region.matches(".lp-region, .lp-repeat") || region === this.regions[0]) return;
      region.classList.toggle("lp-collapsed", isClosed);
      region.setAttribute("aria-expanded", String(!isClosed));
      region.querySelector(":scope > .lp-title").firstChild.data = isClosed ? "▸ " : "▾ ";
    }

    /* A collapsed region shows its groups as a strip, those that go with a bar below. */
    drawStrip(region, x, y, width) {
      region.querySelector(":scope > .lp-strip")?.remove();
      const own = all(region, "[data-group]:not([data-slot])");
      const shapes = own.length ? own : all(region, "[data-group]");
      const step = Math.min(9, width / Math.max(shapes.length, 1));
      const strip = document.createElementNS(this.svg.namespaceURI, "g");
      strip.setAttribute("class", "lp-strip");
      strip.setAttribute("aria-hidden", "true");
      const rect = (around, left, top, height) => {
        const node = document.createElementNS(this.svg.namespaceURI, "rect");
        const given = { x: left, y: top, width: Math.max(step - 1, step * 0.8), height };
        for (const key in given) node.setAttribute(key, given[key].toFixed(1));
        around.append(node);
        return node;
      };
      shapes.forEach((shape, place) => {
        const cell = document.createElementNS(this.svg.namespaceURI, "g");
        cell.setAttribute("class", (shape.getAttribute("class").match(CLASSES) || ["unknown"])[0]);
        rect(cell, x + place * step, y, 9);
        strip.append(cell);
        if (shape.classList.contains("goes")) rect(strip, x + place * step, y + 11, 3).setAttribute("class", "lp-bar-goes");
      });
      region.append(strip);
    }

    toggle(region) {
      this.collapse(region, !region.classList.contains("lp-collapsed"));
      this.layOut();
      this.look();
    }

    collapseAll(isClosed) {
      for (const region of this.regions) this.collapse(region, isClosed);
      this.layOut();
      this.reset();
    }

    reveal(node) {
      let is = false;
      for (let up = node.parentNode.closest(".lp-collapsed"); up; up = up.parentNode.closest(".lp-collapsed")) {
        this.collapse(up, false);
        is = true;
      }
      if (is) this.layOut();
    }

    /* ---- zoom: the part of the drawing that is seen ---- */

    reset() {
      if (!this.size) this.layOut();
      const width = this.canvas.clientWidth || this.size.width;
      const isTouch = matchMedia("(pointer: coarse)").matches;
      this.scale = Math.min(1, Math.max(width / this.size.width, isTouch ? 0.5 : 0.6));
      const tall = this.size.height * this.scale;
      const most = isTouch ? tall : Math.max(420, innerHeight * 0.85);
      this.canvas.style.height = `${Math.min(tall, most)}px`;
      this.x = this.y = 0;
      if (this.size.width * this.scale < width) this.x = (this.size.width - width / this.scale) / 2;
      this.look();
    }

    fit() {
      this.touched = true;
      const { clientWidth: width, clientHeight: height } = this.canvas;
      this.scale = Math.min(1.5, width / this.size.width, height / this.size.height);
      this.x = (this.size.width - width / this.scale) / 2;
      this.y = 0;
      this.look();
    }

    look() {
      if (this.printing) return;
      const { clientWidth: width, clientHeight: height } = this.canvas;
      const w = width / this.scale;
      const h = height / this.scale;
      const clamp = (at, seen, whole) => (seen >= whole ? (whole - seen) / 2 : Math.min(Math.max(at, 0), whole - seen));
      this.x = clamp(this.x, w, this.size.width);
      this.y = h >= this.size.height ? 0 : clamp(this.y, h, this.size.height);
      this.svg.setAttribute("viewBox", [this.x, this.y, w, h].map((v) => v.toFixed(1)).join(" "));
    }

    zoom(factor, clientX, clientY) {
      this.touched = true;
      const box = this.canvas.getBoundingClientRect();
      const px = clientX === undefined ? box.width / 2 : clientX - box.left;
      const py = clientY === undefined ? box.height / 2 : clientY - box.top;
      const scale = Math.min(4, Math.max(0.08, this.scale * factor));
      this.x += px / this.scale - px / scale;
      this.y += py / this.scale - py / scale;
      this.scale = scale;
      this.look();
    }

    bring(node) {
      const box = this.canvas.getBoundingClientRect();
      const own = node.getBoundingClientRect();
      const aside = (low, high, from, to) => (low < from ? low - from - 30 : high > to ? Math.min(high - to + 30, low - from - 30) : 0);
      this.x += aside(own.left, own.right, box.left, box.right) / this.scale;
      this.y += aside(own.top, Math.min(own.bottom, own.top + 200), box.top, box.bottom) / this.scale;
      this.look();
    }

    /* ---- groups ---- */

    send(group, pinned) {
      this.figure.dispatchEvent(new CustomEvent("layerprune:group", { bubbles: true, detail: { group, pinned } }));
    }

    pin(node) {
      for (const other of all(this.svg, ".lp-pinned")) other.classList.remove("lp-pinned");
      this.pinned = Number(node.dataset.group);
      for (const shape of all(this.svg, `[data-group="${this.pinned}"]`)) shape.classList.add("lp-pinned");
      this.send(this.pinned, true);
    }

    unpin() {
      for (const other of all(this.svg, ".lp-pinned")) other.classList.remove("lp-pinned");
      this.pinned = null;
      this.send(null, false);
    }

    focus(node) {
      this.reveal(node);
      for (const item of all(this.svg, "[tabindex='0']")) item.tabIndex = -1;
      node.tabIndex = 0;
      node.focus({ preventScroll: true });
      this.bring(node);
    }

    /* Of blocks that repeat, the drawn one takes the groups of the row that was chosen. */
    showRow(repeat, row) {
      const isOwn = (node) => node.closest(".lp-repeat") === repeat;
      const cells = all(repeat, `.lp-cell[data-row="${row}"]`).filter(isOwn);
      for (const label of all(repeat, ".lp-row").filter(isOwn)) {
        label.classList.toggle("lp-shown", label.dataset.row === String(row));
      }
      const first = repeat.querySelector(`.lp-cell[data-row="0"][data-slot]`);
      const base = first && isOwn(first) ? Number(first.dataset.slot) : 0; // repeated blocks inside repeated blocks
      for (const shape of all(repeat, "[data-slot]")) {
        if (!(shape.dataset.row && isOwn(shape))) this.copy(cells[shape.dataset.slot - base], shape);
      }
      if (repeat.querySelector(".lp-collapsed")) this.layOut();
      const label = all(repeat, `.lp-row[data-row="${row}"]`).find(isOwn);
      if (label) this.rename(repeat.querySelector(":scope > g > [role=treeitem]"), label.dataset.label);
    }

    /* The drawn block, and what is inside, takes the name of the block that was chosen. */
    rename(shown, label) {
      const old = shown.dataset.label;
      shown.dataset.label = label;
      const name = shown.querySelector(":scope > .lp-name");
      if (name) name.textContent = label;
      const before = shown.dataset.module;
      if (before === undefined || old === undefined) return;
      const title = shown.querySelector(":scope > .lp-title");
      title.childNodes[1].data = title.childNodes[1].data.replace(old, () => label);
      const after = before.slice(0, before.length - old.length) + label;
      for (const region of [shown, ...all(shown, "[data-module]")]) {
        if (region.dataset.module.startsWith(before)) region.dataset.module = after + region.dataset.module.slice(before.length);
      }
      shown.setAttribute("aria-label", shown.getAttribute("aria-label").replace(before, () => after));
    }

    copy(cell, shape) {
      if (!cell) return;
      shape.dataset.group = cell.dataset.group;
      shape.querySelector("title").textContent = cell.querySelector("title").textContent;
      const from = cell.getAttribute("class").match(CLASSES);
      shape.setAttribute("class", shape.getAttribute("class").replace(CLASSES, from ? from[0] : "unknown"));
      shape.classList.toggle("lp-pinned", Number(cell.dataset.group) === this.pinned);
      this.setGoes(shape, cell.classList.contains("goes"));
    }

    setGoes(shape, goes) {
      shape.classList.toggle("goes", goes);
      const cross = shape.querySelector(".lp-cross");
      if (!goes && cross) cross.remove();
      if (!goes || cross) return;
      const rect = shape.querySelector("rect");
      const width = Number(rect.getAttribute("width"));
      const height = Number(rect.getAttribute("height"));
      const path = document.createElementNS(this.svg.namespaceURI, "path");
      if (shape.classList.contains("lp-cell")) {
        path.setAttribute("class", "lp-cross");
        path.setAttribute("d", `M2 2L${width - 2} ${height - 2}M${width - 2} 2L2 ${height - 2}`);
        shape.append(path);
        return;
      }
      const badge = document.createElementNS(this.svg.namespaceURI, "g");
      const circle = document.createElementNS(this.svg.namespaceURI, "circle");
      badge.setAttribute("class", "lp-cross");
      circle.setAttribute("cx", width - 2);
      circle.setAttribute("cy", 2);
      circle.setAttribute("r", 7.5);
      path.setAttribute("d", `M${width - 5} -1l6 6m0 -6l-6 6`);
      badge.append(circle, path);
      shape.append(badge);
    }

    mark(groups) {
      const going = new Set(groups);
      for (const shape of all(this.svg, "[data-group]")) {
        const goes = going.has(Number(shape.dataset.group));
        this.setGoes(shape, goes);
        const title = shape.querySelector("title");
        title.textContent = title.textContent.replace(/, goes in the plan$/, "") + (goes ? ", goes in the plan" : "");
      }
      this.layOut(); // the strips of collapsed regions show it, too
    }

    show(group) {
      const shapes = all(this.svg, `[data-group="${Number(group)}"]`);
      const shape = shapes.find((each) => !each.dataset.slot) || shapes[0];
      if (!shape) return;
      if (shape.dataset.row) this.showRow(shape.closest(".lp-repeat"), shape.dataset.row);
      this.focus(shape);
      this.pin(shape);
    }

    /* ---- search ---- */

    search(text) {
      const wanted = text.trim().toLowerCase();
      const shapes = all(this.svg, ".lp-box, .lp-cell");
      this.svg.classList.toggle("lp-searching", wanted !== "");
      this.hits = [];
      for (const shape of shapes) {
        const name = shape.querySelector("title").textContent.toLowerCase();
        const isHit = wanted !== "" && name.includes(wanted);
        shape.classList.toggle("lp-hit", isHit);
        if (isHit && !shape.dataset.slot) this.hits.push(shape);
      }
      this.hit = -1;
      const found = this.figure.querySelector(".lp-found");
      found.textContent = wanted ? `${this.hits.length} found` : "";
    }

    next(step) {
      if (!this.hits || !this.hits.length) return;
      this.hit = (this.hit + step + this.hits.length) % this.hits.length;
      const shape = this.hits[this.hit];
      this.reveal(shape);
      if (shape.dataset.row) this.showRow(shape.closest(".lp-repeat"), shape.dataset.row);
      if (shape.dataset.group) this.pin(shape);
      this.bring(shape);
      this.figure.querySelector(".lp-found").textContent = `${this.hit + 1} of ${this.hits.length}`;
    }

    /* ---- input ---- */

    listen() {
      const { svg, figure } = this;
      const on = (name, action) => figure.querySelector(`[data-act=${name}]`).addEventListener("click", action);
      on("in", () => this.zoom(1.25));
      on("out", () => this.zoom(0.8));
      on("fit", () => this.fit());
      on("close", () => this.collapseAll(true));
      on("open", () => this.collapseAll(false));
      const search = figure.querySelector(".lp-search");
      search.addEventListener("input", () => this.search(search.value));
      search.addEventListener("keydown", (event) => {
        if (event.key === "Enter") this.next(event.shiftKey ? -1 : 1);
        if (event.key === "Escape") this.search((search.value = ""));
      });
      figure.addEventListener("layerprune:mark", (event) => this.mark(event.detail.groups));
      figure.addEventListener("layerprune:show", (event) => this.show(event.detail.group));
      svg.addEventListener("pointerover", (event) => {
        const shape = event.target.closest("[data-group]");
        if (shape) this.send(Number(shape.dataset.group), false);
      });
      svg.addEventListener("pointerout", (event) => {
        if (event.target.closest("[data-group]")) this.send(this.pinned, this.pinned !== null);
      });
      svg.addEventListener("focusin", (event) => {
        const shape = event.target.closest("[data-group]");
        if (shape && shape.matches(":focus-visible")) this.send(Number(shape.dataset.group), false);
      });
      svg.addEventListener("click", (event) => this.click(event));
      svg.addEventListener("keydown", (event) => this.key(event));
      addEventListener("beforeprint", () => this.print());
      addEventListener("afterprint", () => {
        this.printing = false;
        this.reset();
      });
      let width = 0;
      new ResizeObserver(() => {
        if (figure.clientWidth === width) return;
        const isLarge = Math.abs(figure.clientWidth - width) > 24; // more than a scroll bar, which the height decides on
        if (isLarge) width = figure.clientWidth;
        if (isLarge && !this.touched) this.reset();
        else this.look();
      }).observe(figure);
      this.drag();
    }

    click(event) {
      if (this.dragged) return;
      const label = event.target.closest(".lp-row");
      if (label) return this.showRow(label.closest(".lp-repeat"), label.dataset.row);
      const item = event.target.closest("[role=treeitem]");
      if (!item) return;
      if (item.dataset.row && item.classList.contains("lp-cell")) this.showRow(item.closest(".lp-repeat"), item.dataset.row);
      if (item.dataset.group) {
        this.focus(item);
        this.pin(item);
      } else if (event.target.closest(".lp-title") || item.classList.contains("lp-collapsed")) {
        this.toggle(item);
        this.focus(item);
      } else if (this.pinned !== null) this.unpin();
    }

    key(event) {
      const item = event.target.closest("[role=treeitem]");
      if (!item || event.altKey || event.ctrlKey || event.metaKey) return;
      const items = all(this.svg, "[role=treeitem]").filter((each) => this.isVisible(each));
      const place = items.indexOf(item);
      const isRegion = item.hasAttribute("aria-expanded");
      const isOpen = item.getAttribute("aria-expanded") === "true";
      const actions = {
        ArrowDown: () => this.focus(items[Math.min(place + 1, items.length - 1)]),
        ArrowUp: () => this.focus(items[Math.max(place - 1, 0)]),
        Home: () => this.focus(items[0]),
        End: () => this.focus(items[items.length - 1]),
        ArrowRight: () => (isRegion && !isOpen ? this.toggle(item) : this.focus(items[Math.min(place + 1, items.length - 1)])),
        ArrowLeft: () => {
          if (isRegion && isOpen && item !== this.regions[0]) return this.toggle(item);
          const above = item.parentNode.closest("[role=treeitem]");
          if (above) this.focus(above);
        },
        Enter: () => {
          if (item.dataset.row && item.classList.contains("lp-cell")) this.showRow(item.closest(".lp-repeat"), item.dataset.row);
          if (item.dataset.group) this.pin(item);
          else if (isRegion) this.toggle(item);
        },
        Escape: () => this.unpin(),
        "+": () => this.zoom(1.25),
        "=": () => this.zoom(1.25),
        "-": () => this.zoom(0.8),
        0: () => this.fit(),
      };
      const action = actions[event.key === " " ? "Enter" : event.key];
      if (!action) return;
      event.preventDefault();
      action();
    }

    /* One pointer moves the drawing, two zoom it; the wheel zooms with Ctrl, or once the drawing has the focus. */
    drag() {
      const pointers = new Map();
      const { canvas } = this;
      canvas.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey && !canvas.contains(document.activeElement)) return;
        event.preventDefault();
        this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX, event.clientY);
      }, { passive: false });
      canvas.addEventListener("pointerdown", (event) => {
        pointers.set(event.pointerId, event);
        this.dragged = false;
      });
      addEventListener("pointermove", (event) => {
        const last = pointers.get(event.pointerId);
        if (!last) return;
        if (pointers.size === 1) {
          const dx = event.clientX - last.clientX;
          const dy = event.clientY - last.clientY;
          if (!this.dragged && Math.hypot(dx, dy) < 4) return;
          this.dragged = true;
          this.x -= dx / this.scale;
          this.y -= dy / this.scale;
          this.look();
        } else {
          const [a, b] = [...pointers.values()];
          const other = a.pointerId === event.pointerId ? b : a;
          const before = Math.hypot(last.clientX - other.clientX, last.clientY - other.clientY);
          const after = Math.hypot(event.clientX - other.clientX, event.clientY - other.clientY);
          this.dragged = true;
          if (before > 0) this.zoom(after / before, (event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2);
        }
        pointers.set(event.pointerId, event);
      });
      for (const name of ["pointerup", "pointercancel"]) addEventListener(name, (event) => pointers.delete(event.pointerId));
    }

    print() {
      this.printing = true;
      this.canvas.style.height = "auto";
      this.svg.setAttribute("viewBox", `0 0 ${this.size.width} ${this.size.height}`);
    }
  }

  const start = () => {
    for (const figure of all(document, ".lp-picture:not([data-ready])")) {
      figure.dataset.ready = "";
      figure.lpPicture = new Picture(figure);
    }
  };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start);
  else start();
})();
