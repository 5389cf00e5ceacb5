// Live progress of one job by server-sent events. Every page works without it: then it is loaded anew by itself.
"use strict";
(() => {
  const refresh = Number(document.currentScript.dataset.refresh);
  // A page that somebody works on is left alone: what is ticked or written would be lost.
  const busy = () =>
    document.querySelector("input[type=checkbox]:checked") !== null || document.activeElement?.matches("input, select");
  const again = () => setTimeout(() => (busy() ? again() : location.reload()), refresh * 1000);
  const live = document.querySelector("[data-events]");
  if (!live || !("EventSource" in window)) return void again();
  const show = (name, text) => {
    for (const place of document.querySelectorAll(`[data-live="${name}"]`)) {
      if (place.textContent !== text) place.textContent = text;
    }
  };
  const told = live.dataset.state;
  const events = new EventSource(live.dataset.events);
  const take = (event) => {
    const job = JSON.parse(event.data);
    if (event.type === "result" || `${job.status}/${job.business_status ?? ""}` !== told) {
      events.close();
      location.reload();
      return;
    }
    for (const bar of document.querySelectorAll("progress[data-live-bar]")) bar.value = job.progress;
    show("progress", `${job.progress} %`);
    show("eta", job.eta_seconds == null ? "" : `about ${span(job.eta_seconds)} left`);
    if (job.status_info) show("status_info", job.status_info);
    if (job.bytes_done != null) show("bytes", figures(job));
  };
  const span = (seconds) => {
    if (seconds < 90) return `${Math.round(seconds)} s`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
    return `${(seconds / 3600).toFixed(1)} h`;
  };
  const size = (bytes) => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
    return `${unit ? bytes.toFixed(1) : bytes} ${units[unit]}`;
  };
  const figures = (job) =>
    size(job.bytes_done) +
    (job.bytes_total ? ` of ${size(job.bytes_total)}` : "") +
    (job.bytes_per_second ? `, ${size(job.bytes_per_second)}/s` : "");
  for (const name of ["progress", "result"]) events.addEventListener(name, take);
  events.addEventListener("gone", () => location.reload());
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) again();
  };
})();
