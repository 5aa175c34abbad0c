"use strict";
// Grades responses. Every text of the data is set as textContent, never as markup.
(() => {
  const element = (id) => document.getElementById(id);
  const data = JSON.parse(element("data").textContent);
  const fileName = `ratings_expert${data.expert}.json`;
  const storageKey = `smmile review ${data.review} expert ${data.expert}`;
  const words = { correct: "correct", incorrect: "incorrect", cannot_say: "cannot say" };
  const keys = { 1: "correct", c: "correct", 2: "incorrect", i: "incorrect", 3: "cannot_say", x: "cannot_say" };
  const known = new Set(data.items.map(({ item }) => item));
  const gradeButtons = document.querySelectorAll("[data-rating]");

  const ratings = new Map(); // by item: {rating, remark, rated_at}
  let drafts = new Map(); // by item: remarks on items without a rating
  let savedAt = ""; // when the ratings were last saved to a file
  let storageWorks = true;
  let place = 0; // the number of the item on the screen

  // Files, and the browser's storage, which holds the same and more.

  function ratingsFile() {
    const rated = data.items.filter(({ item }) => ratings.has(item));
    return {
      schema_version: data.schema_version,
      review: data.review,
      expert: data.expert,
      name: element("name").value,
      ratings: rated.map(({ item }) => ({ item, ...ratings.get(item) })),
    };
  }

  // The content of a ratings file; throws an Error that says why it is not one of this page.
  function parseRatings(text) {
    let file = null;
    try { file = JSON.parse(text); } catch { /* reported in the next lines */ }
    if (!Array.isArray(file?.ratings) || file.schema_version !== data.schema_version) {
      throw new Error(`It is not a ratings file. Choose the ${fileName} that this page saved.`);
    }
    if (file.review !== data.review) {
      throw new Error("It belongs to another review, with other responses.");
    }
    if (file.expert !== data.expert) {
      throw new Error(`It has the ratings of expert ${file.expert}; this page is for expert ${data.expert}.`);
    }
    for (const one of file.ratings) {
      const isRating = known.has(one?.item) && Object.hasOwn(words, one.rating);
      if (!isRating || typeof one.remark !== "string" || Number.isNaN(Date.parse(one.rated_at))) {
        throw new Error("It is damaged: it has ratings that this page did not write.");
      }
    }
    return file;
  }

  // Takes over the ratings in `file` that are new or newer; returns how many.
  function merge(file) {
    let taken = 0;
    for (const { item, rating, remark, rated_at } of file.ratings) {
      if (!ratings.has(item) || Date.parse(ratings.get(item).rated_at) < Date.parse(rated_at)) {
        ratings.set(item, { rating, remark, rated_at });
        drafts.delete(item);
        taken += 1;
      }
    }
    return taken;
  }

  function keep() {
    try { merge(parseRatings(localStorage.getItem(storageKey))); } catch { /* nothing there from another tab */ }
    try {
      const content = { ...ratingsFile(), saved_at: savedAt, drafts: [...drafts] };
      localStorage.setItem(storageKey, JSON.stringify(content));
      storageWorks = true;
    } catch {
      storageWorks = false;
    }
    showProgress();
  }

  function rate(item, rating, remark) {
    const before = Date.parse(ratings.get(item)?.rated_at) || 0; // by another clock, perhaps
    const ratedAt = new Date(Math.max(Date.now(), before + 1)).toISOString();
    ratings.set(item, { rating, remark, rated_at: ratedAt });
    drafts.delete(item);
  }

  const unsavedCount = () => [...ratings.values()].filter((one) => one.rated_at > savedAt).length;

  function save() {
    const content = new Blob([JSON.stringify(ratingsFile(), null, 1)], { type: "application/json" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(content);
    link.download = fileName;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    savedAt = new Date().toISOString();
    keep();
    const left = drafts.size ? ` It lacks ${drafts.size} remarks on ungraded responses.` : "";
    say(`${ratings.size} ratings saved as ${fileName}.${left}`);
  }

  async function load(file) {
    try {
      const content = parseRatings(await file.text());
      const taken = merge(content);
      const kept = content.ratings.length - taken;
      element("name").value ||= String(content.name ?? "");
      keep();
      show(known.size > ratings.size && ratings.has(data.items[place].item) ? nextUngraded() : place);
      say(`${taken} ratings loaded${kept ? `; ${kept} are the same or newer here and stay` : ""}.`);
    } catch (error) {
      say("", `${file.name} was not loaded. ${error.message}`);
    }
  }

  // What is on the screen.

  function say(status, alert = "") {
    element("status").textContent = status;
    element("alert").textContent = alert;
    element("alert").hidden = !alert;
  }

  function showProgress() {
    const total = data.items.length;
    const unsaved = unsavedCount() ? `${unsavedCount()} not yet saved to a file.` : "All saved to a file.";
    element("progress").max = total;
    element("progress").value = ratings.size;
    element("count").textContent = `${ratings.size} of ${total} graded`;
    element("ungraded").disabled = ratings.size === total;
    element("kept").textContent = storageWorks
      ? `Kept in this browser. ${ratings.size ? unsaved : ""}`
      : `This browser cannot keep your grades: save them to a file before you leave. ${unsaved}`;
    element("kept").classList.toggle("warning", !storageWorks);
  }

  function showExamples() {
    const problem = data.problems[data.items[place].problem];
    const examples = element("examples").open && problem ? problem.examples : [];
    const entries = examples.map((example) => {
      const entry = element("example").content.cloneNode(true);
      entry.querySelector("img").src = data.images[example.image];
      entry.querySelector(".example-question").textContent = example.question;
      entry.querySelector(".example-answer").textContent = example.answer;
      return entry;
    });
    element("examples-list").replaceChildren(...entries);
  }

  function showRating() {
    const rating = ratings.get(data.items[place].item)?.rating;
    for (const button of gradeButtons) {
      button.setAttribute("aria-pressed", String(button.dataset.rating === rating));
    }
    const graded = rating ? `graded ${words[rating]}` : "not graded";
    element("place").textContent = `Response ${place + 1} of ${data.items.length}, ${graded}.`;
  }

  function show(newPlace) {
    place = newPlace;
    const item = data.items[place];
    const problem = data.problems[item.problem];
    element("question").textContent = item.question;
    element("answer").textContent = item.answer;
    element("response").textContent = item.response.trim() ? item.response : "(The response is empty.)";
    element("item").textContent = item.item;
    element("remark").value = ratings.get(item.item)?.remark ?? drafts.get(item.item) ?? "";
    element("query-image").hidden = !problem;
    element("no-image").hidden = Boolean(problem);
    element("examples").hidden = !problem?.examples.length;
    if (problem) {
      element("query-image").firstElementChild.src = data.images[problem.image];
      element("examples-count").textContent = problem.examples.length;
    }
    element("examples").open = false;
    showRating();
    element("previous").disabled = place === 0;
    element("next").disabled = place === data.items.length - 1;
    window.scrollTo(0, 0);
  }

  // What the expert does.

  // The next place without a rating, after the last one from the first again; -1 if there is none.
  function nextUngraded() {
    const isUngraded = ({ item }) => !ratings.has(item);
    const after = data.items.findIndex((item, index) => index > place && isUngraded(item));
    return after >= 0 ? after : data.items.findIndex(isUngraded);
  }

  function go(newPlace) {
    if (data.items[newPlace]) {
      show(newPlace);
      say("");
    }
  }

  function grade(rating) {
    const { item } = data.items[place];
    const isFirst = !ratings.has(item);
    const graded = `Response ${place + 1} graded ${words[rating]}. Go back to change it.`;
    rate(item, rating, element("remark").value);
    keep();
    showRating();
    say(isFirst ? "" : "Grade changed.");
    if (isFirst && nextUngraded() >= 0) {
      show(nextUngraded());
      say(graded);
    } else if (isFirst) {
      element("done").showModal();
    }
  }

  function changeRemark() {
    const { item } = data.items[place];
    const remark = element("remark").value;
    drafts.delete(item);
    if (ratings.has(item)) {
      rate(item, ratings.get(item).rating, remark);
    } else if (remark) {
      drafts.set(item, remark);
    }
    keep();
  }

  function press(event) {
    const key = event.key.toLowerCase();
    const isTyping = event.target.matches("input, textarea");
    if (isTyping && key === "escape") {
      event.target.blur();
    }
    // (A key that is held must not grade the next responses.)
    const isOther = isTyping || event.repeat || event.ctrlKey || event.metaKey || event.altKey;
    if (isOther || document.querySelector("dialog[open]")) {
      return;
    }
    const actions = {
      arrowleft: () => go(place - 1),
      arrowright: () => go(place + 1),
      n: () => go(nextUngraded()),
      r: () => element("remark").focus(),
    };
    const action = Object.hasOwn(keys, key) ? () => grade(keys[key]) : actions[key];
    if (action) {
      event.preventDefault();
      action();
    }
  }

  function enlarge(event) {
    const image = event.target.closest("button.image")?.querySelector("img");
    if (image) {
      element("zoom").firstElementChild.src = image.src;
      element("viewer").classList.remove("full");
      element("viewer").showModal();
    }
  }

  function connect() {
    for (const button of gradeButtons) {
      // The second click of a double click must not grade the next response.
      button.addEventListener("click", (event) => event.detail < 2 && grade(button.dataset.rating));
    }
    const clicks = {
      previous: () => go(place - 1),
      next: () => go(place + 1),
      ungraded: () => go(nextUngraded()),
      save,
      "done-save": save,
      load: () => element("file").click(),
      "help-button": () => element("help").showModal(),
      zoom: () => element("viewer").classList.toggle("full"),
    };
    for (const [id, action] of Object.entries(clicks)) {
      element(id).addEventListener("click", action);
    }
    for (const button of document.querySelectorAll("dialog .close")) {
      button.addEventListener("click", () => button.closest("dialog").close());
    }
    document.querySelector("main").addEventListener("click", enlarge);
    element("file").addEventListener("change", async ({ target }) => {
      await load(target.files[0]);
      target.value = ""; // the same file may be chosen again
    });
    element("examples").addEventListener("toggle", showExamples);
    element("remark").addEventListener("input", changeRemark);
    element("name").addEventListener("input", keep);
    document.addEventListener("keydown", press);
    window.addEventListener("beforeunload", (event) => {
      if (!storageWorks && unsavedCount()) {
        event.preventDefault(); // the browser asks
      }
    });
  }

  function start() {
    connect();
    element("total").textContent = data.items.length;
    try {
      const stored = parseRatings(localStorage.getItem(storageKey));
      drafts = new Map(stored.drafts);
      savedAt = stored.saved_at;
      element("name").value = stored.name;
    } catch {
      element("help").showModal(); // it is the first time
    }
    keep();
    show(Math.max(0, data.items.findIndex(({ item }) => !ratings.has(item))));
  }

  start();
})();
