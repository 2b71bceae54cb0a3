"use strict";

// Keeps a page current: fetches it again, and replaces only those parts that have changed and that nobody is using.

const note = document.getElementById("age");
const slack = 4; // rounds without an answer until the page says so
let measuredAt = note && performance.now() - 1000 * Number(note.dataset.age);

function isInUse(part) {
  const selection = document.getSelection();
  const isSelected = selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  return part.contains(document.activeElement) || isSelected;
}

function keepOpen(old, fresh) {
  for (const details of old.querySelectorAll("details[id]")) {
    const same = fresh.querySelector("#" + CSS.escape(details.id));
    if (same) same.open = details.open;
  }
}

function replaceParts(page) {
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (!fresh || isInUse(old)) continue;
    keepOpen(old, fresh);
    if (!old.isEqualNode(fresh)) old.replaceWith(fresh);
  }
  document.title = page.title;
}

async function update() {
  if (document.hidden) return;
  const answer = await fetch(location.href, { signal: AbortSignal.timeout(10000) });
  if (answer.redirected) return location.reload(); // the session is over
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  measuredAt = performance.now() - 1000 * Number(page.getElementById("age").dataset.age);
  replaceParts(page);
}

function tellAge() {
  const every = Number(note.dataset.every);
  const age = Math.round((performance.now() - measuredAt) / 1000);
  const isOld = age > slack * every;
  note.classList.toggle("old", isOld);
  note.querySelector(".words").textContent = isOld
    ? `These numbers are ${age} s old: the API has not answered since.`
    : `${age} s old; updates itself every ${every} s.`;
}

if (note) {
  setInterval(() => update().catch(() => {}), 1000 * Number(note.dataset.every));
  setInterval(tellAge, 1000);
  document.addEventListener("visibilitychange", () => update().catch(() => {}));
  tellAge();
}
