// Can everybody read and work the page? WCAG 2.2 AA as far as a program can tell: contrast of text (4.5:1, large text 3:1), of
// marks on the map and edges of fields (3:1), a name for everything that can be worked, and the keyboard reaching all of it.

/** What is wrong with the page as it stands, in words; none: nothing found. */
export async function complaintsAbout(page) {
  return [...(await page.evaluate(faint)), ...(await nameless(page)), ...(await unreachable(page))];
}

/** Runs in the page. */
function faint() {
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  /** Any CSS colour as red, green, blue (0 to 255) and opacity (0 to 1). */
  const parse = (colour) => {
    probe.clearRect(0, 0, 1, 1);
    probe.fillStyle = colour;
    probe.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = probe.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [r2, g2, b2]) => [r * a + r2 * (1 - a), g * a + g2 * (1 - a), b * a + b2 * (1 - a), 1];
  const light = ([r, g, b]) => {
    const linear = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const ratio = (one, other) => {
    const [high, low] = [light(one), light(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const root = getComputedStyle(document.documentElement);
  const variable = (name) => parse(root.getPropertyValue(`--${name}`));
  const ground = variable("ground");
  /** What lies behind an element's content, or behind the element. */
  const behind = (element, itself) => {
    const layers = [];
    for (let at = itself ? element : element.parentElement; at; at = at.parentElement) {
      layers.push(parse(getComputedStyle(at).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), ground);
  };
  const found = [];
  const judge = (what, front, back, least) => {
    const has = ratio(over(front, back), back);
    if (has < least) found.push(`${what}: ${has.toFixed(2)}:1, ${least}:1 is the least`);
  };
  const seen = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  let texts = 0;
  for (const element of document.querySelectorAll("body *")) {
    if (!seen(element)) continue;
    const style = getComputedStyle(element);
    const isField = element.matches("input:not([type=checkbox], [type=range]), select");
    const has = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    const name = `${element.tagName.toLowerCase()}#${element.id}.${element.className} “${element.textContent.trim().slice(0, 20)}”`;
    if (has || isField) {
      const size = Number.parseFloat(style.fontSize);
      const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      judge(name, parse(style.color), behind(element, true), isLarge ? 3 : 4.5);
      texts += 1;
    }
    if (isField) {
      judge(`edge of ${name}`, parse(style.borderTopColor), behind(element, false), 3);
      if (element.placeholder) judge(`placeholder of ${name}`, parse(getComputedStyle(element, "::placeholder").color), behind(element, true), 4.5);
    }
  }
  if (texts < 5) found.push(`only ${texts} texts were looked at`);
  // What is drawn on the map and explained in the panel: cars, rings and lines.
  const panel = over(variable("panel"), ground);
  for (const mark of ["free", "held", "pickup", "riding", "offline", "waiting", "zone", "ink"]) {
    judge(`mark ${mark} on the map`, variable(mark), ground, 3);
    judge(`mark ${mark} in the panel`, variable(mark), panel, 3);
  }
  for (const line of ["pickup", "riding", "zone"]) {
    const [r, g, b] = variable(line);
    // As opaque as `draw.ts` draws them.
    judge(`line ${line} on the map`, [r, g, b, 0.8], ground, 3);
  }
  judge("outline of what has the focus", variable("accent"), ground, 3);
  judge("outline of what has the focus, in the panel", variable("accent"), panel, 3);
  return found;
}

/** What can be worked and has no name that a screen reader could say. */
async function nameless(page) {
  const worked = ["button", "textbox", "searchbox", "combobox", "slider", "checkbox", "link", "application", "dialog", "alertdialog", "region"];
  const session = await page.context().newCDPSession(page);
  const { nodes } = await session.send("Accessibility.getFullAXTree");
  await session.detach();
  const parts = nodes.filter((node) => !node.ignored && worked.includes(node.role?.value));
  const found = parts.filter((node) => !node.name?.value?.trim()).map((node) => `a ${node.role.value} without a name`);
  const twice = await page.evaluate(() => {
    const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
    return ids.filter((id, at) => ids.indexOf(id) !== at);
  });
  if (parts.length < 2) found.push(`only ${parts.length} things can be worked`);
  if (!(await page.evaluate(() => document.documentElement.lang))) found.push("the page does not say its language");
  return [...found, ...twice.map((id) => `two elements are #${id}`)];
}

/** What the Tab key does not come to, or shows no outline at. */
async function unreachable(page) {
  const wanted = await page.evaluate(() => {
    const worked = "a[href], button, input, select, summary, [tabindex='0']";
    // Behind an open dialog nothing is to be reached.
    const within = document.querySelector("dialog[open]") ?? document.body;
    const all = [...within.querySelectorAll(worked)].filter((element) => element.checkVisibility({ visibilityProperty: true }));
    all.forEach((element, n) => {
      element.dataset.looked = String(n);
    });
    document.activeElement?.blur();
    return all.length;
  });
  const reached = new Set();
  const found = [];
  for (let n = 0; n < 2 * wanted + 4; n++) {
    await page.keyboard.press("Tab");
    const at = await page.evaluate(() => {
      const element = document.activeElement;
      const { outlineStyle, outlineWidth } = getComputedStyle(element);
      const has = outlineStyle !== "none" && Number.parseFloat(outlineWidth) >= 2;
      return { looked: element.dataset.looked, has, name: `${element.tagName}#${element.id}` };
    });
    if (at.looked === undefined) continue;
    reached.add(at.looked);
    if (!at.has) found.push(`${at.name} shows no outline when it has the focus`);
  }
  if (reached.size < wanted) {
    const missed = await page.evaluate(
      (reached) =>
        [...document.querySelectorAll("[data-looked]")]
          .filter((element) => !reached.includes(element.dataset.looked))
          .map((element) => `${element.tagName}#${element.id} “${element.textContent.trim().slice(0, 20)}”`),
      [...reached],
    );
    found.push(...missed.map((name) => `the Tab key does not come to ${name}`));
  }
  await page.evaluate(() => {
    for (const element of document.querySelectorAll("[data-looked]")) delete element.dataset.looked;
    document.activeElement?.blur();
  });
  return [...new Set(found)];
}
