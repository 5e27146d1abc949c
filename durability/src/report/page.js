// Shows a moment's figures under the pointer. The page says everything without it.
for (const plots of document.querySelectorAll(".plots[data-bucket-us]")) {
  const { bucketUs, endUs, left, right, width } = plots.dataset;
  const column = (name) => plots.dataset[name].split(";");
  const [rates, medians, slowest] = ["rates", "p50", "p99"].map(column);
  const readout = plots.querySelector(".readout");
  const cursors = plots.querySelectorAll(".cursor");
  const show = (event) => {
    const picture = event.target.closest("svg");
    if (!picture) return;
    const box = picture.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    const share = (x - left) / (right - left);
    if (!(share >= 0)) return hide();
    if (share > 1) return hide();
    const bucket = Math.min(Math.floor((share * endUs) / bucketUs), rates.length - 1);
    for (const cursor of cursors) {
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.setAttribute("visibility", "visible");
    }
    const at = ((bucket * bucketUs) / 1e6).toFixed(2);
    const latency = medians[bucket] ? `p50 ${medians[bucket]}, p99 ${slowest[bucket]}` : "nothing acknowledged";
    readout.textContent = `At ${at} s: ${rates[bucket]} records/s, ${latency}`;
  };
  const hide = () => {
    for (const cursor of cursors) cursor.setAttribute("visibility", "hidden");
    readout.textContent = "Point at a plot to read its figures.";
  };
  plots.addEventListener("pointermove", show);
  plots.addEventListener("pointerdown", show);
  // A finger is lifted to see what is below it: its moment stays.
  plots.addEventListener("pointerleave", (event) => event.pointerType === "mouse" ? hide() : undefined);
  hide();
}
