"use strict";
// The page: one event stream for the board that is shown; every panel is drawn again when its data changed.

(() => {
  const { el } = Isoloss;
  const $ = (id) => document.getElementById(id);
  const drawn = new Map(); // panel id -> { panel, section, body, data, chart }
  let boards = [], board = null, source = null, window_ = [0, 1];

  const asked = () => new URLSearchParams(location.hash.slice(1));
  const go = (changes) => {
    const now = asked();
    for (const [name, value] of Object.entries(changes)) now.set(name, value);
    location.hash = now.toString();
  };

  const draw = (entry) => {
    const { panel, body, data } = entry;
    entry.chart?.destroy();
    entry.chart = null;
    body.replaceChildren();
    body.classList.remove("chart");
    if (data.error) body.append(el("div", { class: "empty error" }, data.error));
    else if (!data.rows.length || (panel.kind === "stat" && data.rows[0][0] === null)) body.append(el("div", { class: "empty" }, panel.empty));
    else kinds[panel.kind](entry);
    entry.section.dataset.ready = data.error ? "error" : data.rows.length ? "drawn" : "empty";
  };

  const echart = (entry, option) => {
    entry.body.classList.add("chart");
    const place = el("div", { style: { width: "100%", height: "100%" } });
    entry.body.append(place);
    const chart = echarts.init(place, null, { renderer: "canvas" });
    chart.setOption(option);
    entry.chart = { destroy: () => chart.dispose(), resize: () => chart.resize() };
  };

  const uplot = (entry, { data, options }) => {
    entry.body.classList.add("chart");
    const legend = 24;
    const size = () => ({ width: Math.max(entry.body.clientWidth - 8, 60), height: Math.max(entry.body.clientHeight - legend - 4, 60) });
    const plot = new uPlot({ ...options, ...size() }, data, entry.body);
    entry.chart = { destroy: () => plot.destroy(), resize: () => plot.setSize(size()) };
  };

  const kinds = {
    stat: ({ panel, body, data }) => body.append(Isoloss.stat(panel, data.rows)),
    table: ({ panel, body, data }) => body.append(Isoloss.table(panel, data.columns, data.kinds, data.rows)),
    heatmap: ({ panel, body, data }) => body.append(Isoloss.heat(panel, data.rows)),
    bar: ({ panel, body, data }) => body.append(Isoloss.bar(panel, data.columns, data.rows)),
    state: ({ panel, body, data }) => body.append(Isoloss.lanes(panel, data.rows, window_)),
    timeseries: (entry) => uplot(entry, Isoloss.timeseries(entry.panel, entry.data.columns, entry.data.kinds, entry.data.rows, window_)),
    xy: (entry) => echart(entry, Isoloss.xy(entry.panel, entry.data.rows)),
    parallel: (entry) => echart(entry, Isoloss.parallel(entry.panel, entry.data.rows)),
    basin: (entry) => echart(entry, Isoloss.basin(entry.panel, entry.data.rows, entry.data.columns, entry.data.picture, entry.data.box)),
  };

  const resized = new ResizeObserver((seen) => {
    for (const { target } of seen) drawn.get(target.dataset.panel)?.chart?.resize();
  });

  const layOut = () => {
    resized.disconnect();
    for (const entry of drawn.values()) entry.chart?.destroy();
    drawn.clear();
    const main = $("board");
    main.replaceChildren();
    for (const panel of board.panels) {
      const body = el("div", { class: "body", "data-panel": panel.id }, el("div", { class: "empty" }, "…"));
      const title = el("h2", {}, panel.title);
      if (panel.about) { title.title = panel.about; if (panel.kind !== "stat") title.append(el("small", {}, panel.about)); }
      const section = el("section", { class: "panel", "data-panel": panel.id, "data-kind": panel.kind, style: { gridColumn: `span ${panel.span}`, gridRow: `span ${panel.height}` } }, title, body);
      main.append(section);
      drawn.set(panel.id, { panel, section, body, data: null, chart: null });
      resized.observe(body);
    }
  };

  const choose = (state) => {
    const place = $("choices");
    if (place.contains(document.activeElement)) return; // somebody is choosing
    place.replaceChildren(...board.variables.map(({ name, title }) => {
      const select = el("select", { id: `choose-${name}` }, ...(state.choices[name] ?? []).map((value) => el("option", { value }, value)));
      select.value = state.chosen[name] ?? "";
      select.addEventListener("change", () => { select.blur(); go({ [name]: select.value }); });
      return el("label", { for: `choose-${name}` }, title, select);
    }));
    const nothing = Object.values(state.choices).every((list) => !list.length);
    $("welcome").hidden = !nothing || board.id === "workers";
    $("board").hidden = nothing && board.id !== "workers";
    const name = Object.values(state.chosen).find(Boolean) ?? "";
    document.title = name ? `${name} · isoloss` : "isoloss";
  };

  const live = (kind, words) => { $("live").className = kind; $("live").lastElementChild.textContent = words; };

  const onState = (state) => {
    $("trouble").hidden = !state.error;
    $("trouble").textContent = state.error ?? "";
    if (state.error) return;
    const moved = state.window[0] !== window_[0] || state.window[1] !== window_[1];
    window_ = state.window;
    choose(state);
    live("on", state.live ? "live" : "at rest");
    if (moved) for (const entry of drawn.values()) if (entry.data && ["timeseries", "state"].includes(entry.panel.kind)) draw(entry);
  };

  const listen = () => {
    source?.close();
    const query = asked();
    query.set("board", board.id);
    source = new EventSource(`/stream?${query}`);
    source.addEventListener("state", (event) => onState(JSON.parse(event.data)));
    source.addEventListener("panel", (event) => {
      const data = JSON.parse(event.data), entry = drawn.get(data.id);
      if (entry) { entry.data = data; draw(entry); }
    });
    source.addEventListener("error", () => live("off", "no answer"));
  };

  const show = () => {
    const wanted = boards.find((b) => b.id === asked().get("board")) ?? boards[0];
    for (const tab of $("tabs").children) {
      if (tab.dataset.board === wanted.id) tab.setAttribute("aria-current", "page"); else tab.removeAttribute("aria-current");
    }
    board = wanted;
    layOut();
    listen();
  };

  const start = async () => {
    boards = await (await fetch("/boards")).json();
    $("tabs").replaceChildren(...boards.map((b) => {
      const tab = el("a", { href: `#board=${b.id}`, "data-board": b.id, title: b.about }, b.title);
      tab.addEventListener("click", (event) => { event.preventDefault(); go({ board: b.id }); });
      return tab;
    }));
    addEventListener("hashchange", show);
    addEventListener("pagehide", () => source?.close());
    show();
  };
  start();
})();
