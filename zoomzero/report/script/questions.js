// The list of questions: only the rows in sight are in the page, however many there are.

const ROW = 64; // px, as .row in page.css
const MARGIN = 4; // rows kept above and below

const OUTCOME_SIGNS = {right: ["✓", "right"], wrong: ["✗", "wrong"], unanswered: ["–", "unanswered"]};

function sign(question, run) {
  const flag = flagsOf(question, run).find((one) => one in OUTCOME_SIGNS);
  const [mark, text] = OUTCOME_SIGNS[flag] || ["·", question.answers[run] ? "answered" : "not asked"];
  return make(`span.sign.${flag || "open"}`, {role: "img", "aria-label": runs.length > 1 ? `${runs[run].name}: ${text}` : text}, mark);
}

function miniTimeline(question) {
  const bar = (kind, spans, tint) => make("div.track", {}, spans.map(([start, end]) => make(`i.${kind}`, {style: place(start, end, question.duration), "--tint": tint})));
  return make("div.mini", {"aria-hidden": "true"}, question.spans.length ? bar("true", question.spans) : null,
    question.answers.map((answer, run) => (answer?.spans ? bar("named", answer.spans, colour(run)) : null)));
}

function place(start, end, duration) {
  const left = Math.min(100, Math.max(0, 100 * start / duration));
  return {left: `${left}%`, width: `${Math.max(0.6, Math.min(100 - left, 100 * (end - start) / duration))}%`};
}

function questionList(onPick) {
  const inner = make("ol", {});
  const box = make("div.list", {tabindex: -1}, inner);
  const rows = new Map(); // those in the page, by their order
  function row(order) {
    const index = state.shown[order], question = data.questions[index];
    const notes = [question.tasks.join(", "), clock(question.duration), question.id].filter(Boolean).join(" · ");
    const link = make("a", {href: `#q${index + 1}`, "aria-current": index === state.current ? "true" : null, onclick: (event) => {
      event.preventDefault();
      onPick(order);
    }}, make("span.signs", {}, question.answers.map((_, run) => sign(question, run))),
    make("span.texts", {}, make("span.title", {}, question.question), make("small.soft", {}, notes)), miniTimeline(question));
    return make("li.row", {"aria-posinset": order + 1, "aria-setsize": state.shown.length, style: {top: `${order * ROW}px`}}, link);
  }
  function draw(anew) {
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - MARGIN);
    const last = Math.min(state.shown.length, Math.ceil((box.scrollTop + (box.clientHeight || 800)) / ROW) + MARGIN);
    for (const [order, element] of rows) {
      if (!anew && first <= order && order < last) continue;
      element.remove();
      rows.delete(order);
    }
    const added = document.createDocumentFragment(), isAbove = first < Math.min(...rows.keys());
    for (let order = first; order < last; order++) {
      if (rows.has(order)) continue;
      rows.set(order, row(order));
      added.append(rows.get(order));
    }
    // In the order of reading, for the tab key and for screen readers.
    if (isAbove) inner.prepend(added);
    else inner.append(added);
  }
  // However many scroll events a frame brings, rows are drawn once.
  let isWaiting = false;
  box.addEventListener("scroll", () => {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => {
      isWaiting = false;
      draw(false);
    });
  }, {passive: true});
  new ResizeObserver(() => draw(false)).observe(box);
  return {
    element: box,
    // After another choice of questions, which begins at its top, or another current one, which is brought into sight.
    refresh(isNew) {
      inner.style.height = `${state.shown.length * ROW}px`;
      if (isNew) box.scrollTop = 0;
      // The same questions: the rows stay, but for the mark of the current one.
      else for (const [order, element] of rows) {
        if (state.shown[order] === state.current) element.firstChild.setAttribute("aria-current", "true");
        else element.firstChild.removeAttribute("aria-current");
      }
      const order = state.shown.indexOf(state.current);
      if (order >= 0 && !isNew) {
        const top = order * ROW;
        if (top < box.scrollTop) box.scrollTop = top;
        else if (top + ROW > box.scrollTop + box.clientHeight && box.clientHeight) box.scrollTop = top + ROW - box.clientHeight;
      }
      draw(isNew);
    },
  };
}

function questionsView() {
  const count = make("p.soft.count", {role: "status"});
  const detail = make("article.detail", {tabindex: -1, "aria-label": "Question"});
  const list = questionList((order) => show(order, true));
  const bar = filterBar(() => {
    choose();
    const hidden = !state.shown.includes(state.current);
    if (hidden) state.current = state.shown[0] ?? -1;
    list.refresh(true);
    tell();
    if (hidden) show(0, false);
  });
  const view = make("div.questions", {}, make("div.side", {}, bar, count, list.element), detail);
  function tell() {
    const judged = state.shown.filter((index) => data.questions[index].answer);
    const right = judged.filter((index) => answerOf(data.questions[index])?.right).length;
    count.textContent = `${plural(state.shown.length, "question")}${judged.length ? `, ${percent(right / judged.length)} right` : ""}`;
  }
  // opens: on a narrow screen the question takes the place of the list.
  function show(order, opens) {
    const index = state.shown[order];
    state.current = index ?? -1;
    view.classList.toggle("open", opens && index !== undefined);
    detail.replaceChildren(index === undefined ? make("p.empty", {}, "No question fits these filters.") : questionDetail(index, order, {step, back}));
    detail.scrollTop = 0;
    list.refresh(false);
    if (opens) history.replaceState(null, "", `#q${index + 1}`);
  }
  function step(by) {
    const order = state.shown.indexOf(state.current);
    show(Math.min(state.shown.length - 1, Math.max(0, order + by)), true);
  }
  function back() { view.classList.remove("open"); history.replaceState(null, "", "#questions"); }
  // A link to a question that the filters hide takes them away.
  function open(index) {
    if (!state.shown.includes(index)) {
      Object.assign(state, {outcome: "", task: "", length: "", text: ""});
      if (data.questions[index].answers[state.run] === null) state.run = data.questions[index].answers.findIndex(Boolean);
      choose();
      list.refresh(true);
    }
    show(state.shown.indexOf(index), true);
  }
  choose();
  list.refresh(true);
  tell();
  show(0, false);
  return {element: view, step, open, back, refresh: () => list.refresh(false)};
}
