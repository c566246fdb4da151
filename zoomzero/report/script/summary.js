// The first view: the figures of the runs.

const runs = data.runs;
const runLegend = () => (runs.length > 1 ? make("div.legend", {}, runs.map((run, place) => key(run.name, colour(place)))) : null);

const METRIC_NAMES = {
  Acc: "answers right", mIoU: "mean IoU of spans", mIoP: "mean precision of spans (IoP)", mIoG: "mean recall of spans (IoG)",
  "Acc@GQA": "right, and IoP at least .5 (Acc@GQA)", "R@1": "IoU at least .5 (R@1)", num_samples: "questions", num_grounded: "with evidence",
};

function tile(value, name, note, place) {
  return make("div.tile", {"--tint": colour(place)}, make("strong", {}, value), make("span", {}, name), note ? make("small", {}, note) : null);
}

function tiles(run, place) {
  const metric = (name) => run.metrics.find((one) => one.name === name);
  const final = run.strategies.at(-1), first = run.strategies.length > 1 ? run.strategies[0] : null;
  const range = (one) => (one && isNumber(one.low) ? `95 %: ${fixed(100 * one.low, 1)} to ${fixed(100 * one.high, 1)}` : "");
  const shown = [
    final && tile(percent(final.accuracy), "right", range(final), place),
    first && tile(percent(first.accuracy), "right at first look", range(first), place),
    metric("mIoU") && tile(percent(metric("mIoU").value), "mean IoU", range(metric("mIoU")), place),
    isNumber(run.zoom.rescued) && tile(percent(run.zoom.rescued), "rescued by zoom", `${percent(run.zoom.broken)} broken`, place),
    isNumber(run.zoom.held_evidence) && tile(percent(run.zoom.held_evidence), "zooms hold the evidence", "at least half of it", place),
    final && tile(short(final.cost.visual_tokens), "visual tokens a question", `${short(final.cost.flops)}FLOP, ${short(final.cost.seconds)} s`, place),
  ];
  const answered = run.num_answered < run.num_questions ? `, ${run.num_answered} answered` : "";
  return make("section.run", {"aria-label": run.name},
    runs.length > 1 ? make("h2.runname", {"--tint": colour(place)}, run.name) : null,
    make("p.soft", {}, `${plural(run.num_questions, "question")}${answered}`, settingsText(run)),
    make("div.tiles", {}, shown));
}

const settingsText = (run) => run.settings.filter(([name]) => ["model", "strategy", "budget_tokens"].includes(name)).map(([name, value]) => ` · ${name.replace("_", " ")} ${value.split("/").at(-1)}`).join("");

function differenceLine() {
  const found = data.difference;
  if (!found) return null;
  const sign = (value) => (value >= 0 ? "+" : "−") + fixed(Math.abs(100 * value), 1);
  return make("p.difference", {}, make("b", {}, `${sign(found.value)} points`),
    ` from ${runs[0].name} to ${runs[1].name} over ${plural(found.num_shared, "shared question")}`,
    isNumber(found.low) ? ` (95 %: ${sign(found.low)} to ${sign(found.high)})` : "",
    `: ${found.gained} became right, ${found.lost} became wrong.`);
}

function grouped(title, part) {
  const names = [...new Set(runs.flatMap((run) => run[part].map((group) => group.name)))];
  if (names.length < 2) return null;
  const rows = names.flatMap((name) => runs.flatMap((run, place) => {
    const group = run[part].find((one) => one.name === name);
    return group ? [{name: place ? "" : `${name}`, value: group.accuracy, low: group.low, high: group.high, note: plural(group.count, "question"), colour: colour(place)}] : [];
  }));
  return card(title, "Share of right answers, %, with 95 % intervals.", runLegend(), dots(title, rows));
}

function strategies() {
  const rows = runs.flatMap((run, place) => run.strategies.map((one) => ({
    name: runs.length > 1 ? `${run.name}: ${one.name}` : one.name, value: one.accuracy, low: one.low, high: one.high, colour: colour(place),
  })));
  return rows.length ? card("Accuracy by strategy", "Share of right answers, %, with 95 % intervals.", dots("Accuracy by strategy", rows)) : null;
}

const COSTS = [["flops", "FLOP a question"], ["visual_tokens", "visual tokens a question"], ["seconds", "seconds a question"]];

function accuracyAgainstCost() {
  const some = runs.filter((run) => run.strategies.length);
  if (!some.length) return null;
  const holder = make("div");
  const show = (measure, unit) => holder.replaceChildren(scatter("Accuracy against cost", some.map((run) => run.strategies.map((one, order) => ({
    name: `${run.name}: ${one.name}`, x: one.cost[measure], y: one.accuracy, low: one.low, high: one.high,
    colour: colour(runs.indexOf(run)), hollow: order === 0 && run.strategies.length > 1,
  }))), unit));
  const choice = make("select", {"aria-label": "Cost", onchange: () => show(...COSTS[choice.selectedIndex])}, COSTS.map(([, unit]) => make("option", {}, unit)));
  show(...COSTS[0]);
  const box = card("Accuracy against cost", "Right answers, %. Hollow: the first look alone.", runLegend(), holder);
  box.querySelector("h2").append(choice);
  return box;
}

function iouCard() {
  const series = runs.map((run, place) => ({name: run.name, counts: run.iou_histogram, colour: colour(place)})).filter((one) => one.counts.length);
  return series.length ? card("Overlap with the true evidence", "Questions by the IoU of the final spans.", runLegend(), histogram("IoU of the final spans", series)) : null;
}

function calibrationCard() {
  const series = runs.map((run, place) => run.calibration && {name: run.name, colour: colour(place), ...run.calibration}).filter(Boolean);
  if (!series.length) return null;
  const errors = series.map((one) => `${series.length > 1 ? `${one.name} ` : ""}${fixed(one.error, 3)}`).join(", ");
  return card("Calibration", `Right answers, %, by the model's confidence; larger is more answers. Expected error: ${errors}.`, runLegend(), reliability("Calibration", series));
}

function metricsTable() {
  const names = [...new Set(runs.flatMap((run) => run.metrics.map((one) => one.name)))];
  const cell = (one) => {
    if (!one) return make("td", {}, "–");
    if (one.name.startsWith("num_")) return make("td", {}, one.value.toLocaleString("en"));
    return make("td", {}, fixed(100 * one.value, 1), isNumber(one.low) ? make("small.soft", {}, ` ${fixed(100 * one.low, 1)} to ${fixed(100 * one.high, 1)}`) : null);
  };
  const zoom = (name) => runs.map((run) => make("td", {}, isNumber(run.zoom[name]) ? fixed(100 * run.zoom[name], 1) : "–"));
  const row = (name, cells) => make("tr", {}, make("th", {scope: "row"}, name), cells);
  const extra = [["rescued", "wrong at first, right after the zoom"], ["broken", "right at first, wrong after the zoom"], ["Acc_held", "right where the zoom holds the evidence"], ["Acc_missed", "right where it misses the evidence"]];
  return card("All figures", "In %, with 95 % intervals from resampled questions.", make("div.scroll", {tabindex: 0, role: "region", "aria-label": "All figures"}, make("table", {},
    make("thead", {}, make("tr", {}, make("td"), runs.map((run) => make("th", {scope: "col"}, run.name)))),
    make("tbody", {}, names.map((name) => row(METRIC_NAMES[name] || name.replace("IoU@", "IoU at least ").replace("IoP@", "IoP at least "), runs.map((run) => cell(run.metrics.find((one) => one.name === name))))),
      extra.filter(([name]) => runs.some((run) => isNumber(run.zoom[name]))).map(([name, text]) => row(text, zoom(name)))))));
}

function settingsCard() {
  const names = [...new Set(runs.flatMap((run) => run.settings.map(([name]) => name)))];
  return card("Settings", null, make("div.scroll", {tabindex: 0, role: "region", "aria-label": "Settings"}, make("table.settings", {},
    make("thead", {}, make("tr", {}, make("td"), runs.map((run) => make("th", {scope: "col"}, run.name)))),
    make("tbody", {}, names.map((name) => make("tr", {}, make("th", {scope: "row"}, name.replaceAll("_", " ")),
      runs.map((run) => make("td", {}, (run.settings.find(([one]) => one === name) || [null, "–"])[1]))))))));
}

function summaryView() {
  return make("div.summary", {}, data.lead ? make("p.lead", {}, data.lead) : null, runs.map(tiles), differenceLine(), make("div.grid", {}, strategies(), accuracyAgainstCost(), iouCard(), calibrationCard(),
    grouped("By the length of the video", "by_duration"), grouped("By task", "by_task")),
  runs.length ? make("div.grid.tables", {}, metricsTable(), settingsCard()) : null);
}
