// Views, keys, colours and print.

const MAX_PRINTED = 40;
const views = {};
if (runs.length) views.summary = {name: "Summary", make: () => ({element: summaryView()})};
if (trainings.length) views.training = {name: "Training", make: () => ({element: trainingView()})};
if (data.questions.length) views.questions = {name: "Questions", make: questionsView};

const main = document.getElementById("main"), tabs = document.getElementById("tabs");
const links = {};
for (const [id, view] of Object.entries(views)) {
  links[id] = make("a", {href: `#${id}`}, view.name, id === "questions" ? make("small", {}, data.questions.length.toLocaleString("en")) : null);
  tabs.append(links[id]);
}

function openView(id) {
  const view = views[id];
  view.made ??= view.make();
  for (const [name, link] of Object.entries(links)) link.toggleAttribute("aria-current", name === id);
  for (const [name, link] of Object.entries(links)) if (name === id) link.setAttribute("aria-current", "page");
  document.body.dataset.view = id;
  if (main.firstChild !== view.made.element) {
    main.replaceChildren(view.made.element);
    scrollTo(0, 0);
  }
  view.made.refresh?.();
  return view.made;
}

function follow() {
  const asked = /^#q([0-9]+)$/.exec(location.hash);
  const index = asked ? Number(asked[1]) - 1 : -1;
  if (views.questions && index >= 0 && index < data.questions.length) openView("questions").open(index);
  else openView(location.hash.slice(1) in views ? location.hash.slice(1) : Object.keys(views)[0]);
}

const keys = document.getElementById("keys");
const KEYS = [["j, k", "next and previous question"], ["/", "search"], ["1, 2, 3", "parts of the report"], ["Esc", "back to the list, or end the search"], ["?", "this help"]];
const SIGNS = [["rescued by zoom", "wrong at first look, right at the end"], ["broken by zoom", "right at first look, wrong at the end"], ["evidence missed", "the zoomed spans hold less than half of the true evidence"]];
keys.append(make("h2", {id: "keys-title"}, "Keys and signs"), make("dl", {}, [...KEYS, ...SIGNS].map(([name, text], place) => [make("dt", {}, place < KEYS.length ? make("kbd", {}, name) : name), make("dd", {}, text)])),
  make("form", {method: "dialog"}, make("button.chip", {}, "Close")));
keys.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); keys.close(); });
document.getElementById("help").addEventListener("click", () => keys.showModal());

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
  const typing = event.target.matches("input[type=search], textarea");
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    else views.questions?.made?.back();
    return;
  }
  if (typing || event.target.matches("select")) return;
  const number = Object.keys(views)[Number(event.key) - 1];
  if (event.key === "?") keys.showModal();
  else if (event.key === "/" && views.questions) {
    openView("questions").back();
    document.getElementById("search").focus();
  } else if ((event.key === "j" || event.key === "k") && views.questions) {
    const isOpen = document.body.dataset.view === "questions";
    const view = openView("questions");
    view.step(isOpen ? (event.key === "j" ? 1 : -1) : 0);
  } else if (number) location.hash = number;
  else return;
  event.preventDefault();
}

const THEMES = [["", "◐", "as the system"], ["light", "○", "light"], ["dark", "●", "dark"]];
function setTheme(place) {
  const [name, mark, text] = THEMES[place];
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  const button = document.getElementById("theme");
  button.textContent = mark;
  button.setAttribute("aria-label", `Colours: ${text}`);
  button.onclick = () => setTheme((place + 1) % THEMES.length);
}

// On paper: the summary, the training, and the questions that the filters let through, as far as paper is patient.
addEventListener("beforeprint", () => {
  const chosen = views.questions?.made ? state.shown : data.questions.map((_, place) => place);
  document.getElementById("print").replaceChildren(...Object.entries(views).filter(([id]) => id !== "questions" && main.firstChild !== views[id].made?.element).map(([, view]) => view.make().element),
    ...(chosen.length ? [make("h2", {}, chosen.length > MAX_PRINTED ? `The first ${MAX_PRINTED} of ${chosen.length} questions` : plural(chosen.length, "question"))] : []),
    ...chosen.slice(0, MAX_PRINTED).map((index, order) => make("article.detail", {}, questionDetail(index, order, null))));
});
addEventListener("afterprint", () => document.getElementById("print").replaceChildren());

document.addEventListener("keydown", onKey);
addEventListener("hashchange", follow);
setTheme(0);
follow();
