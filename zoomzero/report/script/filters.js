// Which questions are shown, and in which order.

const OUTCOMES = [
  ["wrong", "wrong", (flags) => flags.includes("wrong")],
  ["right", "right", (flags) => flags.includes("right")],
  ["rescued", "rescued by zoom", (flags) => flags.includes("rescued")],
  ["broken", "broken by zoom", (flags) => flags.includes("broken")],
  ["missed", "evidence missed", (flags) => flags.includes("missed")],
  ["unanswered", "unanswered", (flags) => flags.includes("unanswered")],
];
const flagsOf = (question, run) => question.answers[run]?.flags || [];
const changed = (question, before, after) => flagsOf(question, 0).includes(before) && flagsOf(question, 1).includes(after);
const CHANGES = [
  ["gained", "became right", (question) => changed(question, "wrong", "right")],
  ["lost", "became wrong", (question) => changed(question, "right", "wrong")],
];

const SORTS = {
  file: ["as in the file", (question, place) => place],
  unsure: ["least sure first", (question) => answerOf(question)?.confidence ?? 2],
  sure: ["surest first", (question) => -(answerOf(question)?.confidence ?? -1)],
  iou: ["lowest IoU first", (question) => answerOf(question)?.iou ?? 2],
  cost: ["most work first", (question) => -(answerOf(question)?.cost?.flops ?? 0)],
  length: ["longest video first", (question) => -question.duration],
};

// run: of two runs the one whose outcome is asked for.
const state = {outcome: "", task: "", length: "", text: "", sort: "file", run: Math.max(0, runs.length - 1), shown: [], current: -1};
const answerOf = (question) => question.answers[state.run];
const searched = data.questions.map((question) => [question.question, question.video, question.id, ...question.options, ...question.tasks].join("\n").toLowerCase());

function hasOutcome(question, outcome) {
  const change = CHANGES.find(([name]) => name === outcome);
  const wanted = OUTCOMES.find(([name]) => name === outcome);
  return (!change || change[2](question)) && (!wanted || wanted[2](flagsOf(question, state.run)));
}

// Places of the questions that fit all but the outcome.
function candidates() {
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  return data.questions.map((_, place) => place).filter((place) => {
    const question = data.questions[place];
    return question.answers[state.run] !== null && (!state.task || question.tasks.includes(state.task))
      && (!state.length || question.length === state.length) && words.every((word) => searched[place].includes(word));
  });
}

// Places of the questions that fit, in the order that was chosen.
function choose() {
  const rank = SORTS[state.sort][1];
  state.shown = candidates().filter((place) => hasOutcome(data.questions[place], state.outcome));
  const keys = new Map(state.shown.map((place) => [place, rank(data.questions[place], place)]));
  state.shown.sort((a, b) => keys.get(a) - keys.get(b) || a - b);
}

function filterBar(onChange) {
  const change = (name, value) => { state[name] = value; refresh(); onChange(); };
  const picker = (name, title, all, values) => (values.length < 2 ? null : make("select", {"aria-label": title, onchange: (event) => change(name, event.target.value)},
    make("option", {value: ""}, all), values.map((value) => make("option", {value}, value))));
  const search = make("input", {type: "search", id: "search", placeholder: "Search  /", "aria-label": "Search questions, options, videos and tasks", oninput: (event) => change("text", event.target.value.trim())});
  const unique = (values) => [...new Set(values.filter(Boolean))].sort();
  const chips = make("div.chips", {role: "group", "aria-label": "Outcome"});
  const runPicker = runs.length < 2 ? null : make("div.segments", {role: "group", "aria-label": "Outcome of"}, runs.map((run, place) =>
    make("button", {type: "button", "aria-pressed": String(place === state.run), "--tint": colour(place), onclick: (event) => {
      for (const other of event.target.parentNode.children) other.setAttribute("aria-pressed", String(other === event.target));
      change("run", place);
    }}, run.name)));
  function refresh() {
    const all = [["", "all", null], ...OUTCOMES, ...(runs.length > 1 ? CHANGES : [])];
    const had = document.activeElement?.dataset?.outcome, places = candidates();
    chips.replaceChildren(...all.map(([name, text]) => {
      const count = places.filter((place) => hasOutcome(data.questions[place], name)).length;
      if (!count && name && name !== state.outcome) return null;
      return make("button.chip", {type: "button", "data-outcome": name || "all", "aria-pressed": String(state.outcome === name), onclick: () => change("outcome", state.outcome === name ? "" : name)},
        text, make("span", {}, count.toLocaleString("en")));
    }).filter(Boolean));
    if (had) chips.querySelector(`[data-outcome="${had}"]`)?.focus();
  }
  refresh();
  return make("div.filters", {}, search, runPicker, chips, make("div.pickers", {},
    picker("task", "Task", "all tasks", unique(data.questions.flatMap((question) => question.tasks))),
    picker("length", "Length of the video", "all lengths", unique(data.questions.map((question) => question.length))),
    make("select", {"aria-label": "Order", id: "sort", onchange: (event) => change("sort", event.target.value)},
      Object.entries(SORTS).map(([value, [text]]) => make("option", {value}, text)))));
}
