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

// The browser of answers. Every text of a model goes into the page as a text node, never as markup. A live page calls
// this again when there are more answers; what was chosen stays, since it is in the address.
let browsing = new AbortController();
const browseAnswers = () => {
  browsing.abort();
  browsing = new AbortController();
  const element = document.getElementById("examples-data");
  const list = document.getElementById("list");
  if (!element || !list) return;
  const sets = JSON.parse(element.textContent);
  const PAGE = 10;
  const choice = document.getElementById("set");
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

  // "show" has what a reader chose, by the model's name: one choice holds for all evaluations that have the model
  const state = { set: sets[0], q: "", show: new Map(), order: "data", differ: false, pages: 1 };

  const visible = (model) => (state.show.has(model.name) ? state.show.get(model.name) : model.shown);

  const read = () => {
    const hash = location.hash.slice(1);
    if (!hash.includes("=")) return; // an anchor
    const given = new URLSearchParams(hash);
    state.set = sets.find((set) => set.title === given.get("set")) || sets[0];
    state.q = given.get("q") || "";
    state.show.clear();
    if (given.has("show")) {
      const names = given.getAll("show");
      for (const model of state.set.models) state.show.set(model.name, names.includes(model.name));
    }
    state.order = orders.some(([key]) => key === given.get("order")) ? given.get("order") : "data";
    state.differ = given.get("differ") === "1";
  };

  const write = () => {
    const told = new URLSearchParams();
    const { models } = state.set;
    if (state.set !== sets[0]) told.set("set", state.set.title);
    if (state.q) told.set("q", state.q);
    if (models.some((model) => model.shown !== visible(model))) {
      models.forEach((model) => visible(model) && told.append("show", model.name));
      if (!told.has("show")) told.set("show", "");
    }
    if (state.order !== "data") told.set("order", state.order);
    if (state.differ) told.set("differ", "1");
    const text = told.toString();
    history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
  };

  // Which examples, in which order ------------------------------------------------------------------------------------

  const score = (item, place) => (item.answers[place] ? item.answers[place].score : undefined);
  const gain = (item) => {
    const places = shown().filter((place) => score(item, place) !== undefined);
    return places.length < 2 ? 0 : score(item, places[places.length - 1]) - score(item, places[0]);
  };
  const orders = [
    ["data", "as in the data", null],
    ["gains", "gained most, first to last shown model", (a, b) => gain(b) - gain(a)],
    ["losses", "lost most, first to last shown model", (a, b) => gain(a) - gain(b)],
  ];
  const shown = () => state.set.models.map((_, place) => place).filter((place) => visible(state.set.models[place]));

  const pattern = () => {
    const words = state.q.trim();
    return words ? new RegExp(words.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "giu") : null;
  };

  const answers = (item) => shown().flatMap((place) => (item.answers[place] ? [item.answers[place].texts] : []));

  const texts = (item) => [
    ...item.prompt.map((message) => message[1]),
    ...(item.reference ? [item.reference[0]] : []),
    ...answers(item).flatMap((turns) => turns.map((turn) => turn[0])),
  ];

  const chosen = () => {
    const wanted = pattern();
    const found = state.set.items.filter((item) => {
      if (wanted && !texts(item).some((text) => text.search(wanted) >= 0)) return false;
      return !state.differ || new Set(answers(item).map((turns) => JSON.stringify(turns))).size > 1;
    });
    const compare = orders.find(([key]) => key === state.order)[2];
    return compare && state.set.measure ? [...found].sort(compare) : found;
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

  // Models that answer alike share a block.
  const blocks = (item) => {
    const together = new Map();
    for (const place of shown()) {
      const answer = item.answers[place];
      const key = JSON.stringify([answer && [answer.texts, answer.facts], state.set.models[place].kind]);
      together.set(key, [...(together.get(key) || []), place]);
    }
    return [...together.values()];
  };

  const column = (item, places, wanted) => {
    const { models } = state.set;
    const { kind, file } = models[places[0]];
    const answer = item.answers[places[0]];
    const names = places.flatMap((place, number) => [...(number ? [", "] : []), make("bdi", "", models[place].name)]);
    const block = make("div", "", make("h3", "", ...names, kind === "greedy" ? "" : ` (${kind})`));
    if (!answer) block.append(make("p", "none", "no answer to this prompt"));
    (answer ? answer.texts : []).forEach((turn, number) => {
      if (answer.texts.length > 1) block.append(make("p", "turn-line", `turn ${number + 1}`));
      block.append(...(turn[0] ? text(turn, wanted, file) : [make("p", "none", "an empty answer")]));
    });
    if (answer && answer.facts.length) block.append(make("p", "facts-line", answer.facts.join(" · ")));
    return block;
  };

  const card = (item, wanted) => {
    const block = make("article", "example");
    const { file } = state.set;
    for (const [role, ...words] of item.prompt) {
      const heading = item.prompt.length === 1 ? "prompt" : role;
      const style = role === "system" ? "turn system" : "turn";
      block.append(make("div", style, make("h3", "", heading), ...text(words, wanted, file)));
    }
    const columns = blocks(item).map((places) => column(item, places, wanted));
    if (item.reference) {
      columns.unshift(make("div", "reference", make("h3", "", "reference"), ...text(item.reference, wanted, file)));
    }
    block.append(make("div", "answers", ...columns));
    return block;
  };

  const render = () => {
    const wanted = pattern();
    const found = chosen();
    const page = found.slice(0, PAGE * state.pages);
    list.replaceChildren(...page.map((item) => card(item, wanted)));
    const all = state.set.items.length;
    const of = found.length === all ? "" : ` of ${format.format(all)}`;
    count.textContent = found.length
      ? `${format.format(found.length)}${of} prompt${found.length === 1 && !of ? "" : "s"}` +
        (page.length < found.length ? `, ${format.format(page.length)} shown` : "")
      : "No prompt matches.";
    more.hidden = page.length === found.length;
    more.textContent = `Show ${format.format(Math.min(PAGE, found.length - page.length))} more`;
  };

  // Controls ----------------------------------------------------------------------------------------------------------

  const change = () => {
    state.pages = 1;
    write();
    render();
  };

  const show = () => {
    const { set } = state;
    choice.value = String(sets.indexOf(set));
    document.querySelectorAll("#answers .about").forEach((about, place) => {
      about.hidden = sets[place] !== set;
    });
    search.value = state.q;
    order.replaceChildren(
      ...orders.filter((one) => set.measure || !one[2]).map(([key, name, compare]) => {
        const option = make("option", "", compare ? `${set.measure} ${name}` : name);
        option.value = key;
        return option;
      }),
    );
    order.value = set.measure ? state.order : "data";
    differ.checked = state.differ;
    document.getElementById("models").replaceChildren(
      ...set.models.map((model) => {
        const box = make("input", "");
        box.type = "checkbox";
        box.checked = visible(model);
        box.addEventListener("change", () => {
          state.show.set(model.name, box.checked);
          change();
        });
        const label = make("label", "", box);
        label.append(make("bdi", "", model.name));
        return label;
      }),
    );
  };

  sets.forEach((set, place) => {
    const option = make("option", "", set.title);
    option.value = String(place);
    choice.append(option);
  });
  document.getElementById("sets").hidden = sets.length < 2;
  choice.addEventListener("change", () => {
    state.set = sets[Number(choice.value)];
    show();
    change();
  });
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
  const follow = () => {
    read();
    show();
    render();
  };
  addEventListener("hashchange", follow, { signal: browsing.signal });
  document.getElementById("controls").hidden = false;
  read();
  show();
  render();
};
browseAnswers();
