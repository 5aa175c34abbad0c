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
  let unsaved = new Set(); // the items whose ratings are not yet saved to a file
  let name = ""; // the expert's
  let storageWorks = true;
  let place = 0; // the number of the item on the screen

  // Files, and the browser's storage, which holds the same and more.

  function ratingsFile() {
    const rated = data.items.filter(({ item }) => ratings.has(item));
    return {
      schema_version: data.schema_version,
      review: data.review,
      expert: data.expert,
      name,
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
    const isRating = (one) => known.has(one?.item) && Object.hasOwn(words, one.rating) &&
      typeof one.remark === "string" && typeof one.rated_at === "string" && !Number.isNaN(Date.parse(one.rated_at));
    if (typeof file.name !== "string" || !file.ratings.every(isRating)) {
      throw new Error("It is damaged: it has ratings or a name that this page did not write.");
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
        unsaved.add(item);
        taken += 1;
      }
    }
    return taken;
  }

  // Takes over what this or another tab has stored, if anything: before each change, so that none is lost.
  function readStored() {
    try {
      const stored = parseRatings(localStorage.getItem(storageKey));
      merge(stored);
      if (storageWorks) { // else what is stored is older than what is here
        drafts = new Map(stored.drafts);
        unsaved = new Set(stored.unsaved);
        name = stored.name;
      }
      return true;
    } catch {
      return false;
    }
  }

  function store() {
    try {
      const content = { ...ratingsFile(), unsaved: [...unsaved], drafts: [...drafts] };
      localStorage.setItem(storageKey, JSON.stringify(content));
      storageWorks = true;
    } catch {
      storageWorks = false;
    }
    showState();
  }

  function rate(item, rating, remark) {
    const before = Date.parse(ratings.get(item)?.rated_at) || 0; // by another clock, perhaps
    const ratedAt = new Date(Math.max(Date.now(), before + 1)).toISOString();
    ratings.set(item, { rating, remark, rated_at: ratedAt });
    drafts.delete(item);
    unsaved.add(item);
  }

  function save() {
    readStored();
    const content = new Blob([JSON.stringify(ratingsFile(), null, 1)], { type: "application/json" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(content);
    link.download = fileName;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    unsaved.clear();
    store();
    const left = drafts.size ? ` It lacks ${drafts.size} remarks on ungraded responses.` : "";
    say(`${ratings.size} ratings saved as ${fileName}.${left}`);
  }

  async function load(file) {
    try {
      const content = parseRatings(await file.text());
      readStored();
      const taken = merge(content);
      const kept = content.ratings.length - taken;
      name ||= content.name;
      store();
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

  function showState() {
    const total = data.items.length;
    const files = unsaved.size ? `${unsaved.size} not yet saved to a file.` : "All saved to a file.";
    element("progress").max = total;
    element("progress").value = ratings.size;
    element("count").textContent = `${ratings.size} of ${total} graded`;
    element("ungraded").disabled = ratings.size === total;
    element("kept").textContent = storageWorks
      ? `Kept in this browser. ${ratings.size ? files : ""}`
      : `This browser cannot keep your grades: save them to a file before you leave. ${files}`;
    element("kept").classList.toggle("warning", !storageWorks);
    element("name").value = name;
    showRating();
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
    const { item } = data.items[place];
    const rating = ratings.get(item)?.rating;
    for (const button of gradeButtons) {
      button.setAttribute("aria-pressed", String(button.dataset.rating === rating));
    }
    const graded = rating ? `graded ${words[rating]}` : "not graded";
    element("place").textContent = `Response ${place + 1} of ${data.items.length}, ${graded}.`;
    element("remark").value = ratings.get(item)?.remark ?? drafts.get(item) ?? "";
  }

  function show(newPlace) {
    place = newPlace;
    const item = data.items[place];
    const problem = data.problems[item.problem];
    element("question").textContent = item.question;
    element("answer").textContent = item.answer;
    element("response").textContent = item.response.trim() ? item.response : "(The response is empty.)";
    element("item").textContent = item.item;
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
    readStored();
    const { item } = data.items[place];
    const isFirst = !ratings.has(item);
    const graded = `Response ${place + 1} graded ${words[rating]}. Go back to change it.`;
    rate(item, rating, element("remark").value);
    store();
    say(isFirst ? "" : "Grade changed.");
    if (isFirst && nextUngraded() >= 0) {
      show(nextUngraded());
      say(graded);
    } else if (isFirst) {
      element("done").showModal();
    }
  }

  function changeRemark() {
    readStored();
    const { item } = data.items[place];
    const remark = element("remark").value;
    drafts.delete(item);
    if (ratings.has(item)) {
      rate(item, ratings.get(item).rating, remark);
    } else if (remark) {
      drafts.set(item, remark);
    }
    store();
  }

  function changeName({ target }) {
    readStored();
    name = target.value;
    store();
  }

  function press(event) {
    const key = event.key.toLowerCase();
    const isTyping = event.target.matches("input, textarea");
    if (isTyping && key === "escape") {
      event.target.blur();
    }
    // (A key that is held must not grade the next responses, and Enter presses a button again and again.)
    if (event.repeat && event.target.matches("button")) {
      event.preventDefault();
    }
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
    element("name").addEventListener("input", changeName);
    document.addEventListener("keydown", press);
    window.addEventListener("storage", () => readStored() && showState()); // another tab stored something
    window.addEventListener("beforeunload", (event) => {
      if (!storageWorks && (unsaved.size || drafts.size)) {
        event.preventDefault(); // the browser asks
      }
    });
  }

  function start() {
    connect();
    element("total").textContent = data.items.length;
    if (!readStored()) {
      element("help").showModal(); // it is the first time
    }
    store();
    show(Math.max(0, data.items.findIndex(({ item }) => !ratings.has(item))));
  }

  start();
})();
