"use strict";
// The page reads without this script. Texts of the data are only read, compared, copied and set as text, never as markup.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
document.documentElement.classList.add("live");

// A link to what is folded opens it.
const unfold = () => {
  for (let e = document.getElementById(location.hash.slice(1)); e; e = e.parentElement) if (e.matches("details")) e.open = true;
};
addEventListener("hashchange", unfold);
unfold();

// Copy buttons. Where a page may not write to the clipboard, a prompt holds the text, selected.
document.addEventListener("click", async ({ target }) => {
  const button = target.closest("button[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    const name = button.textContent;
    button.textContent = "copied";
    setTimeout(() => { button.textContent = name; }, 1200);
  } catch {
    prompt("Copy:", button.dataset.copy);
  }
});

// The inside of a card is inert (`noscript`). Thousands of pictures take seconds to load, so in a gallery it stays so until
// it comes near the screen.
const fill = (card) => {
  const inert = card.querySelector(":scope > noscript");
  if (!inert) return;
  inert.replaceWith(...new DOMParser().parseFromString(inert.textContent, "text/html").body.childNodes);
  for (const more of all(".more", card)) more.open = Boolean(document.querySelector(".bar input")?.value);
};
const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) fill(target);
    for (const drawing of all("svg.moving", target)) isIntersecting ? drawing.unpauseAnimations() : drawing.pauseAnimations();
  }
}, { rootMargin: "600px" });
for (const card of all(".card")) {
  sight.observe(card);
  if (!card.closest(".cards")) fill(card);
}
addEventListener("beforeprint", () => all(".card:not([hidden])").forEach(fill));

// The bar: which cards are shown, in which order.
const bar = document.querySelector(".bar");
if (bar) {
  const list = document.querySelector(".cards");
  const [text, label, status, split, order, motion] = all("input, select", bar);
  const cards = all(".card", list).map((card, place) => ({
    card, place, held: `${card.querySelector("h3").textContent}\n${card.dataset.text}`.toLowerCase(),
    label: Number(card.dataset.label), score: Number(card.dataset.score), captions: -Number(card.dataset.poor),
    status: card.dataset.status.split("\n"), split: card.dataset.split.split("\n"),
  }));
  const filter = (event) => {
    const words = text.value.trim().toLowerCase();
    let shown = 0;
    for (const one of cards) {
      const fits = (!words || one.held.includes(words)) && (!label.value || one.label === Number(label.value)) &&
        (!status.value || one.status.includes(status.value)) && (!split.value || one.split.includes(split.value));
      if (one.card.hidden === fits) one.card.hidden = !fits;
      shown += fits;
    }
    if (event?.target === text) for (const more of all(".card:not([hidden]) .more", list)) more.open = Boolean(words);
    bar.querySelector("output").textContent = `${shown.toLocaleString("en")} of ${cards.length.toLocaleString("en")} shown`;
    document.querySelector(".nothing").hidden = shown > 0;
  };
  bar.addEventListener("input", filter);
  order.addEventListener("change", () => {
    const by = order.value;
    list.replaceChildren();  // all at once: taken out one by one, ten thousand cards need half a minute
    list.append(...cards.sort((a, b) => a[by] - b[by] || a.place - b.place).map((one) => one.card));
  });
  motion.addEventListener("change", () => document.documentElement.classList.toggle("rest", !motion.checked));
  bar.hidden = false;
  filter();
}

// The viewer: left and right lead through the frames of a sample, up and down to other samples.
{
  const viewer = document.querySelector("dialog.viewer");
  let at = null;
  const [title, picture, facts, caption] = all(".title, .picture, .facts, .caption", viewer);
  const show = (figure) => {
    if (!figure) return;
    at = figure;
    const card = figure.closest(".card"), image = figure.querySelector("img");
    const said = card.querySelector(`.says [data-slots~="${Number(figure.dataset.slot)}"]`);
    picture.hidden = !image;
    if (image) picture.src = image.src;
    picture.alt = image ? image.alt : "";
    title.replaceChildren(...card.querySelector("h3").cloneNode(true).childNodes);
    facts.textContent = figure.querySelector("figcaption").textContent;
    caption.textContent = said ? said.lastElementChild.textContent : "";
    if (!viewer.open) viewer.showModal();
  };
  const frame = (step) => {
    const frames = all("figure", at.parentElement);
    show(frames[frames.indexOf(at) + step]);
  };
  const sample = (step) => {
    const cards = all(".card").filter((card) => card.checkVisibility());
    let place = cards.indexOf(at.closest(".card")) + step, figure = null;
    for (; cards[place] && !figure; place += step) {  // a sample without crops is passed over
      fill(cards[place]);
      figure = cards[place].querySelector(".strip figure");
    }
    show(figure);
  };
  const steps = { ArrowLeft: () => frame(-1), ArrowRight: () => frame(1), ArrowUp: () => sample(-1), ArrowDown: () => sample(1) };
  document.addEventListener("click", ({ target }) => {
    if (target.closest(".strip img")) show(target.closest("figure"));
    if (target === viewer || target.closest("dialog .close")) viewer.close();
    if (viewer.open) steps[target.closest("button")?.dataset.step]?.();
  });
  document.addEventListener("keydown", (event) => {
    if (viewer.open && steps[event.key]) {
      event.preventDefault();
      steps[event.key]();
    } else if (event.key === "Enter" && event.target.matches(".strip")) {
      event.preventDefault();  // or the same key presses the viewer's first button
      show(event.target.firstElementChild);
    }
  });
  viewer.addEventListener("close", () => {
    at.scrollIntoView({ block: "nearest", inline: "nearest" });
    at.parentElement.focus({ preventScroll: true });
  });
}

// Tables: a press on the head of a column sorts the rows by it.
for (const table of all("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, at) => {
    const text = row.cells[at].textContent.trim().replace(/^[<>] /, ""), number = parseFloat(text.replace("−", "-").replaceAll(",", ""));
    return isNaN(number) || isNaN(parseInt(text.replace(/^[−+]/, ""))) ? text : number;
  };
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numbers = head.classList.contains("n"), before = head.getAttribute("aria-sort");
      const up = before ? before === "descending" : !numbers;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
      body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * compare(value(a, at), value(b, at))));
    });
  });
}
