// One question: its options, a timeline of all passes, and what each pass saw and said.

function sheetOf(pass) {
  return pass.sheet === null ? null : JSON.parse(document.getElementById(`sheet-${pass.sheet}`).textContent);
}

const timesOf = (pass) => pass.frames.flatMap(([first, step, count]) => Array.from({length: count}, (_, place) => first + step * place));

function timeline(question) {
  const share = (time) => 1000 * Math.min(1, Math.max(0, time / question.duration));
  const bars = (kind, spans, tint) => spans.map(([start, end]) => make(`i.${kind}`, {title: `${clock(start)} to ${clock(end)}`, style: place(start, end, question.duration), "--tint": tint}));
  const row = (name, ...children) => make("div.line", {}, make("span.linename", {}, name), make("div.track", {}, ...children));
  const ticksOf = (pass) => draw("svg.ticks", {viewBox: "0 0 1000 10", preserveAspectRatio: "none", "aria-hidden": "true"},
    draw("path", {d: timesOf(pass).map((time) => `M${share(time).toFixed(1)} 0V10`).join("")}));
  const rows = question.spans.length ? [row("true evidence", bars("true", question.spans))] : [];
  question.answers.forEach((answer, run) => (answer?.passes || []).forEach((pass, order) => rows.push(row(
    `${runs.length > 1 ? `${runs[run].name}, ` : ""}${order + 1} ${pass.name}`,
    bars("looked", pass.looked_at, colour(run)), ticksOf(pass), bars("named", pass.spans, colour(run))))));
  const axis = make("div.axis", {"aria-hidden": "true"}, make("span.linename"), make("div.marks", {}, ticks(0, question.duration, 6).filter((mark) => mark <= question.duration)
    .map((mark) => make("span", {style: {left: `${100 * mark / question.duration}%`}}, clock(mark)))));
  const legend = make("div.legend", {}, key("true evidence", "var(--true)"), key("span named", runs.length > 1 ? "var(--soft)" : colour(0)), make("span.key", {}, make("i.looked", {"aria-hidden": "true"}), "looked at"), make("span.key", {}, make("i.tick", {"aria-hidden": "true"}), "frame seen"));
  const said = question.answers.map((answer) => answer?.spans && spanText(answer.spans)).filter(Boolean).join("; ");
  return make("figure.timeline", {role: "group", "aria-label": `Timeline: true evidence ${spanText(question.spans) || "unknown"}; named ${said || "none"}`}, rows, axis, legend);
}

function frames(question, pass) {
  const sheet = sheetOf(pass);
  if (!sheet) return null;
  // Whole multiples of the model's pixels; the few frames of a zoom are looked at closely.
  const wanted = sheet.times.length > 8 ? 64 : 150;
  const shown = sheet.width * Math.max(1, Math.floor(wanted / sheet.width));
  const zoom = shown / sheet.width, rows = Math.ceil(sheet.times.length / sheet.columns);
  const strip = make(`div.frames${zoom > 1 ? ".pixels" : ""}`, {"--sheet": `url("${sheet.url}")`, role: "group", "aria-label": `${sheet.times.length} frames`});
  sheet.times.forEach((time, order) => {
    const [x, y] = [order % sheet.columns, Math.floor(order / sheet.columns)];
    const style = {
      width: `${shown}px`, aspectRatio: `${sheet.width} / ${sheet.height}`, backgroundSize: `${100 * sheet.columns}% ${100 * rows}%`,
      backgroundPosition: `${sheet.columns > 1 ? 100 * x / (sheet.columns - 1) : 0}% ${rows > 1 ? 100 * y / (rows - 1) : 0}%`,
    };
    const inside = question.spans.some(([start, end]) => start <= time && time <= end);
    strip.append(make(`figure.frame${inside ? ".inside" : ""}`, {}, make("div", {style, role: "img", "aria-label": `frame at ${clock(time)}${inside ? ", evidence" : ""}`}), make("figcaption", {"aria-hidden": "true"}, clock(time))));
  });
  return strip;
}

function passCard(question, pass, order, run) {
  const [height, width] = pass.size;
  const sheet = pass.sheet === null ? null : sheetOf(pass);
  const some = sheet && sheet.times.length < pass.num_frames ? `${sheet.times.length} of ` : "";
  const said = pass.letter ?? pass.words;
  const verdict = pass.right === null ? "" : pass.right ? ".right" : ".wrong";
  const sure = Math.round(100 * (pass.confidence ?? 0));
  return make("section.pass", {"--tint": colour(run)}, make("header", {},
    make("div", {}, make("h3", {}, `${order + 1} · ${pass.name}`), make("p.soft", {}, pass.why)),
    make("div.said", {}, make(`b${verdict}`, {}, said ?? "no answer", pass.right === null ? "" : pass.right ? " ✓" : " ✗"),
      make("span.meter", {role: "img", "aria-label": `confidence ${sure} %`}, make("i", {style: {width: `${sure}%`}})), make("small.soft", {}, `${sure} % sure`))),
  make("p.facts.soft", {}, `${some}${plural(pass.num_frames, "frame")} of ${width}×${height}`, pass.looked_at.length ? ` in ${spanText(pass.looked_at)}` : "",
    ` · ${short(pass.cost.visual_tokens)} visual tokens · ${short(pass.cost.flops)}FLOP · ${short(pass.cost.seconds)} s`),
  frames(question, pass), make("pre", {tabindex: 0, "aria-label": "Response"}, pass.text));
}

const FLAG_TEXTS = {rescued: "rescued by zoom", broken: "broken by zoom", missed: "evidence missed", right: "right", wrong: "wrong", unanswered: "unanswered"};

function options(question) {
  const isShort = runs.length < 2 && question.options.every((text) => text.length < 9);
  return make(`ul.options${isShort ? ".short" : ""}`, {}, question.options.map((text, order) => {
    const letter = letterOf(order), isTrue = letter === question.answer;
    const chosen = question.answers.map((answer, run) => (answer?.letter === letter ? make("span.chose", {"--tint": colour(run)}, runs.length > 1 ? runs[run].name : "chosen") : null));
    return make(`li${isTrue ? ".true" : ""}`, {}, make("b", {}, letter), make("span", {}, text), chosen, isTrue ? make("span.truth", {}, "right answer") : null);
  }));
}

function runColumn(question, answer, run) {
  if (!answer) return make("div.column", {}, make("h3.runname", {"--tint": colour(run)}, runs[run].name), make("p.soft", {}, "Not asked in this run."));
  const badges = answer.flags.map((flag) => make(`span.badge.${flag}`, {}, FLAG_TEXTS[flag]));
  const facts = [answer.spans?.length ? `evidence ${spanText(answer.spans)}` : null, isNumber(answer.iou) ? `IoU ${fixed(answer.iou)}` : null,
    answer.cost ? `${short(answer.cost.visual_tokens)} visual tokens, ${short(answer.cost.flops)}FLOP, ${short(answer.cost.seconds)} s in all` : null].filter(Boolean);
  const words = !question.options.length && answer.text ? make("p.words", {}, answer.text) : null;
  return make("div.column", {}, runs.length > 1 ? make("h3.runname", {"--tint": colour(run)}, runs[run].name) : null,
    make("p.verdict", {}, badges, make("span.soft", {}, facts.join(" · "))), words, (answer.passes || []).map((pass, order) => passCard(question, pass, order, run)));
}

// moves: {step(by), back()}, null in print.
function questionDetail(index, order, moves) {
  const question = data.questions[index];
  const facts = [question.video, clock(question.duration), ...question.tasks, question.category, question.id].filter(Boolean).join(" · ");
  const tools = moves && make("div.steps", {}, make("button.quiet.back", {type: "button", onclick: moves.back}, "‹ List"), make("span.soft", {}, `${order + 1} of ${state.shown.length}`),
    make("button.quiet", {type: "button", "aria-label": "Previous question", title: "k", onclick: () => moves.step(-1)}, "↑"), make("button.quiet", {type: "button", "aria-label": "Next question", title: "j", onclick: () => moves.step(1)}, "↓"),
    make("a.quiet", {href: `#q${index + 1}`, "aria-label": "Link to this question"}, `#q${index + 1}`));
  return make("div.inner", {}, tools, make("h2.asked", {}, question.question), make("p.soft", {}, facts), options(question), timeline(question),
    make(`div.columns${runs.length > 1 ? ".two" : ""}`, {}, question.answers.map((answer, run) => runColumn(question, answer, run))));
}
