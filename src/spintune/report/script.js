"use strict";
// A link to a run opens it.
(() => {
  const open = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (!(target instanceof HTMLDetailsElement)) return;
    target.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();
})();

// The browser of answers. Every text of a model goes into the page as a text node, never as markup.
(() => {
  const element = document.getElementById("examples-data");
  const list = document.getElementById("list");
  if (!element || !list) return;
  const { models, items } = JSON.parse(element.textContent);
  const PAGE = 10;
  const search = document.getElementById("search");
  const order = document.getElementById("order");
  const differ = document.getElementById("differ");
  const more = document.getElementById("more");
  const count = document.getElementById("count");
  const format = new Intl.NumberFormat("en");

  const make = (tag, style, ...inside) => {
    const made = document.createElement(tag);
    if (style) made.className = style;
    made.append(...inside);
    return made;
  };

  // State: in the address behind "#", so that a view can be sent to someone -------------------------------------------

  const state = { q: "", show: models.map((model) => model.shown), order: "data", differ: false, pages: 1 };

  const read = () => {
    const hash = location.hash.slice(1);
    if (!hash.includes("=")) return; // an anchor
    const given = new URLSearchParams(hash);
    if (given.has("q")) state.q = given.get("q");
    if (given.has("show")) {
      const names = given.getAll("show");
      state.show = models.map((model) => names.includes(model.name));
    }
    if (orders.some(([key]) => key === given.get("order"))) state.order = given.get("order");
    state.differ = given.get("differ") === "1";
  };

  const write = () => {
    const told = new URLSearchParams();
    if (state.q) told.set("q", state.q);
    if (models.some((model, place) => model.shown !== state.show[place])) {
      models.forEach((model, place) => state.show[place] && told.append("show", model.name));
      if (!told.has("show")) told.set("show", "");
    }
    if (state.order !== "data") told.set("order", state.order);
    if (state.differ) told.set("differ", "1");
    const text = told.toString();
    history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
  };

  // Which examples, in which order ------------------------------------------------------------------------------------

  const rouge = (item, place) => (item.answers[place] ? item.answers[place].rouge : undefined);
  const gain = (item) => {
    const places = shown().filter((place) => rouge(item, place) !== undefined);
    return places.length < 2 ? 0 : rouge(item, places[places.length - 1]) - rouge(item, places[0]);
  };
  const orders = [
    ["data", "as in the data", null],
    ["gains", "ROUGE-L gained most, first to last shown model", (a, b) => gain(b) - gain(a)],
    ["losses", "ROUGE-L lost most, first to last shown model", (a, b) => gain(a) - gain(b)],
  ];
  const shown = () => models.map((_, place) => place).filter((place) => state.show[place]);

  const pattern = () => {
    const words = state.q.trim();
    return words ? new RegExp(words.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "giu") : null;
  };

  const texts = (item) => [
    ...item.prompt.map((message) => message[1]),
    item.reference[0],
    ...shown().flatMap((place) => (item.answers[place] ? [item.answers[place].text[0]] : [])),
  ];

  const chosen = () => {
    const wanted = pattern();
    const found = items.filter((item) => {
      if (wanted && !texts(item).some((text) => text.search(wanted) >= 0)) return false;
      if (!state.differ) return true;
      const answers = shown().flatMap((place) => (item.answers[place] ? [item.answers[place].text[0]] : []));
      return new Set(answers).size > 1;
    });
    const compare = orders.find(([key]) => key === state.order)[2];
    return compare ? [...found].sort(compare) : found;
  };

  // The page ----------------------------------------------------------------------------------------------------------

  // A piece of text that is written from right to left, or turns the direction, must not move what stands beside it.
  const text = ([words, left], wanted, file) => {
    const block = make("div", "text");
    block.dir = "auto";
    let from = 0;
    if (wanted) {
      for (const match of words.matchAll(wanted)) {
        if (!match[0]) continue;
        block.append(words.slice(from, match.index), make("mark", "", match[0]));
        from = match.index + match[0].length;
      }
    }
    block.append(words.slice(from));
    if (words.length > 1200) block.tabIndex = 0; // scrolls
    if (!left) return [block];
    return [block, make("span", "rest", `… cut here: ${format.format(left)} more characters in ${file}`)];
  };

  const facts = (answer) => {
    const told = [];
    if (answer.rouge !== undefined) told.push(`ROUGE-L ${answer.rouge.toFixed(3)}`);
    if (answer.exact) told.push("exact match");
    if (answer.tokens !== undefined) told.push(`${format.format(answer.tokens)} token${answer.tokens === 1 ? "" : "s"}`);
    if (answer.finished === false) told.push("cut for length");
    return told.join(" · ");
  };

  // Models that answer alike share a block.
  const blocks = (item) => {
    const together = new Map();
    for (const place of shown()) {
      const answer = item.answers[place];
      const key = JSON.stringify([answer && [answer.text, facts(answer)], models[place].kind]);
      together.set(key, [...(together.get(key) || []), place]);
    }
    return [...together.values()];
  };

  const column = (item, places, wanted) => {
    const { kind, file } = models[places[0]];
    const answer = item.answers[places[0]];
    const names = places.flatMap((place, number) => [...(number ? [", "] : []), make("bdi", "", models[place].name)]);
    const block = make("div", "", make("h3", "", ...names, kind === "greedy" ? "" : ` (${kind})`));
    if (!answer) block.append(make("p", "none", "no answer to this prompt"));
    else if (!answer.text[0]) block.append(make("p", "none", "an empty answer"));
    else block.append(...text(answer.text, wanted, file));
    if (answer && facts(answer)) block.append(make("p", "facts-line", facts(answer)));
    return block;
  };

  const card = (item, wanted) => {
    const block = make("article", "example");
    for (const [role, ...words] of item.prompt) {
      const heading = item.prompt.length === 1 ? "prompt" : role;
      block.append(make("div", `turn ${role}`, make("h3", "", heading), ...text(words, wanted, "data/heldout.jsonl")));
    }
    const reference = make("div", "reference", make("h3", "", "reference"));
    reference.append(...text(item.reference, wanted, "data/heldout.jsonl"));
    const answers = blocks(item).map((places) => column(item, places, wanted));
    block.append(make("div", "answers", reference, ...answers));
    return block;
  };

  const render = () => {
    const wanted = pattern();
    const found = chosen();
    const visible = found.slice(0, PAGE * state.pages);
    list.replaceChildren(...visible.map((item) => card(item, wanted)));
    const of = found.length === items.length ? "" : ` of ${format.format(items.length)}`;
    count.textContent = found.length
      ? `${format.format(found.length)}${of} prompt${found.length === 1 && !of ? "" : "s"}` +
        (visible.length < found.length ? `, ${format.format(visible.length)} shown` : "")
      : "No prompt matches.";
    more.hidden = visible.length === found.length;
    more.textContent = `Show ${format.format(Math.min(PAGE, found.length - visible.length))} more`;
  };

  // Controls ----------------------------------------------------------------------------------------------------------

  const change = () => {
    state.pages = 1;
    write();
    render();
  };

  const show = () => {
    search.value = state.q;
    order.value = state.order;
    differ.checked = state.differ;
    document.querySelectorAll("#models input").forEach((box, place) => {
      box.checked = state.show[place];
    });
  };

  models.forEach((model, place) => {
    const box = make("input", "");
    box.type = "checkbox";
    box.addEventListener("change", () => {
      state.show[place] = box.checked;
      change();
    });
    const label = make("label", "", box);
    label.append(make("bdi", "", model.name));
    document.getElementById("models").append(label);
  });
  for (const [key, name] of orders) {
    const option = make("option", "", name);
    option.value = key;
    order.append(option);
  }
  let timer = 0;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      state.q = search.value;
      change();
    }, 120);
  });
  order.addEventListener("change", () => {
    state.order = order.value;
    change();
  });
  differ.addEventListener("change", () => {
    state.differ = differ.checked;
    change();
  });
  more.addEventListener("click", () => {
    const next = list.children.length;
    state.pages += 1;
    render();
    list.children[next].tabIndex = -1; // a keyboard goes on where the new ones begin
    list.children[next].focus();
  });
  addEventListener("hashchange", () => {
    read();
    show();
    render();
  });
  document.getElementById("controls").hidden = false;
  read();
  show();
  render();
})();
