"use strict";
addEventListener("DOMContentLoaded", () => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const card = byId("card");
  root.classList.add("script");

  const make = (tag, text, cls) => {
    const node = document.createElement(tag);
    if (text) node.textContent = text;
    if (cls) node.className = cls;
    return node;
  };

  // ---- theme
  const theme = byId("theme");
  const isDark = () =>
    (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  showTheme();

  // ---- the card of a group
  const picture = document.querySelector("figure.lp-picture");
  const tell = (name, detail) => picture && picture.dispatchEvent(new CustomEvent(`layerprune:${name}`, { detail }));
  const table = byId("groups-table");
  const rows = table ? [...table.tBodies[0].rows] : [];
  rows.forEach((line, number) => (line.dataset.group = number));
  const nameOf = (number) => rows[number].cells[0].textContent;
  const leaving = new Set();
  let opener = null;
  let pinned = null;

  const facts = (number) => {
    const list = make("dl", "", "facts");
    const heads = [...document.querySelectorAll("#groups-table thead th")];
    heads.slice(1, -1).forEach((head, place) => {
      list.append(make("dt", head.textContent), make("dd", rows[number].cells[place + 1].textContent));
    });
    const group = data.groups[number];
    if (group.with) list.append(make("dt", "Leaves with"), make("dd", group.with.map(nameOf).join(", "), "name"));
    if (group.by_name) list.append(make("dt", "By name"), make("dd", group.by_name));
    list.append(make("dt", "Type"), make("dd", data.texts[group.type]));
    return list;
  };
  const verdicts = { removable: "Can leave", with_calibration: "Can leave with calibration data", critical: "Stays" };
  const showCard = (number) => {
    const group = data.groups[number];
    const name = nameOf(number);
    const heading = make("h2", name);
    const close = make("button", "Close", "close");
    close.type = "button";
    close.addEventListener("click", () => hideCard(true));
    const leaves = leaving.has(number);
    const verdict = make("p", leaves ? "Leaves now" : verdicts[data.texts[group.verdict]], leaves ? "verdict leaves" : "verdict");
    const members = make("ul");
    const around = name.slice(0, name.lastIndexOf("."));
    for (const [own, text] of group.members) {
      const item = make("li");
      const layer = own.startsWith(".") ? around + own : own || name;
      item.append(make("span", layer, "name"), make("span", data.texts[text], "fine"));
      members.append(item);
    }
    card.replaceChildren(heading, close, verdict);
    if (group.reason) card.append(make("p", group.reason, "why"));
    if (picture) {
      const show = make("button", "Show in the picture", "open");
      show.type = "button";
      show.addEventListener("click", () => {
        picture.scrollIntoView({ block: "nearest" });
        tell("show", { group: number });
      });
      card.append(show);
    }
    card.append(facts(number), make("h3", `Members (${group.members.length})`), members);
    card.setAttribute("aria-label", `Group ${name}`);
    card.hidden = false;
    card.scrollTop = 0;
    document.querySelectorAll(".picked").forEach((each) => each.classList.remove("picked"));
    rows[number].classList.add("picked");
  };
  const hideCard = (returnFocus) => {
    if (card.hidden) return;
    card.hidden = true;
    pinned = null;
    document.querySelectorAll(".picked").forEach((each) => each.classList.remove("picked"));
    if (returnFocus && opener && opener.isConnected) opener.focus();
  };
  const pin = (number, from) => {
    opener = from;
    pinned = number;
    showCard(number);
    card.focus({ preventScroll: true });
  };
  const numberOf = (node) => {
    const holder = node.closest && node.closest("[data-group]");
    return holder ? Number(holder.dataset.group) : null;
  };
  document.addEventListener("click", (event) => {
    const isCell = event.target.matches("button.open, .groups th button, .strip rect");
    const number = isCell ? numberOf(event.target) : null;
    if (number === null) return;
    pin(number, event.target);
  });
  document.addEventListener("layerprune:group", ({ detail: { group, pinned: isPinned } }) => {
    if (isPinned && group !== null) pin(group, document.activeElement);
    else if (pinned === null) group === null ? hideCard(false) : showCard(group);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideCard(true);
  });
  document.querySelectorAll(".strip").forEach((strip) => {
    strip.addEventListener("pointerover", (event) => {
      const number = numberOf(event.target);
      if (pinned === null && number !== null && event.pointerType === "mouse") showCard(number);
    });
    strip.addEventListener("pointerleave", () => pinned === null && hideCard(false));
  });

  // ---- the table of groups: order, search
  if (table) {
    const body = table.tBodies[0];
    const units = { k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15 };
    const amount = (cell) => {
      const [number, unit] = cell.textContent.split(" ");
      const found = Number(number.replaceAll(",", "")) * (units[unit] || 1);
      return Number.isNaN(found) ? Infinity : found;
    };
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, column) => {
      const button = head.querySelector(".sort");
      if (!button) return;
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (line) => (column < 2 ? Number(line.dataset.sort.split(",")[column]) : amount(line.cells[column]));
        const known = (number) => number < 1e300;
        const sorted = [...body.rows].sort((a, b) => {
          const [x, y] = [value(a), value(b)];
          if (known(x) !== known(y)) return known(x) ? -1 : 1; // what is not known stays last, both ways
          return (down ? y - x : x - y) || 0;
        });
        body.append(...sorted);
      });
    });
    const find = byId("find");
    find.addEventListener("input", () => {
      const wanted = find.value.trim().toLowerCase();
      let count = 0;
      for (const line of body.rows) {
        line.hidden = !line.cells[0].textContent.toLowerCase().includes(wanted);
        count += !line.hidden;
      }
      byId("found").textContent = wanted ? `${count} of ${body.rows.length}` : "";
    });
  }

  // ---- what leaves: the plan's groups, or those of the slider's size
  const mark = (numbers) => {
    leaving.clear();
    numbers.forEach((number) => leaving.add(number));
    document.querySelectorAll("#groups-table tbody tr, .strip rect").forEach((each) => {
      const leaves = leaving.has(Number(each.dataset.group));
      each.classList.toggle("leaves", leaves);
      if (each.cells) each.cells[each.cells.length - 1].textContent = leaves ? "leaves" : "";
    });
    tell("mark", { groups: [...leaving] });
    if (pinned !== null) showCard(pinned);
  };
  const slider = byId("size");
  if (slider) {
    const dots = [...document.querySelectorAll("#frontier .plot-area .dot")];
    const show = () => {
      const place = Number(slider.value);
      const set = place ? data.sets[place - 1] : { text: "The original: nothing leaves", groups: [] };
      byId("size-text").textContent = set.text;
      slider.setAttribute("aria-valuetext", set.text);
      byId("size-groups").replaceChildren(
        ...set.groups.map((number) => {
          const item = make("li");
          const button = make("button", nameOf(number), "name open");
          button.type = "button";
          button.dataset.group = number;
          item.append(button);
          return item;
        }),
      );
      dots.forEach((dot) => dot.classList.toggle("now", Number(dot.dataset.set) === place));
      mark(set.groups);
    };
    slider.addEventListener("input", show);
    show();
  } else if (table) {
    mark(rows.flatMap((line, number) => (line.classList.contains("leaves") ? [number] : [])));
  }

  // ---- print: what is folded is printed, too
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((each) => (each.open = true));
  });
  addEventListener("afterprint", () => folded.forEach((each) => (each.open = false)));

  // ---- the plan as a file
  const download = byId("download");
  if (download) {
    download.addEventListener("click", () => {
      const link = make("a");
      link.href = URL.createObjectURL(new Blob([byId("plan").textContent], { type: "application/json" }));
      link.download = "plan.json";
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
});
