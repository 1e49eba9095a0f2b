// Shows pages and answers. Whatever a model or a file name says is set as text, never as markup.
const at = id => document.getElementById(id), LARGEST = 20 * 2 ** 20;
const [form, example, file, question, page, state, answers] = ["form", "example", "file", "question", "page", "state", "answers"].map(at);
let examples = [];

function suggest(questions) {
  at("questions").replaceChildren(...questions.map(text => new Option("", text)));
  question.value = questions[0] ?? "";
  answers.hidden = true;
  state.textContent = "";
}

function choose() {
  file.value = "";
  page.src = `/examples/${example.value}.png`;
  suggest(examples[example.value].questions);
}

function take() {
  const [one] = file.files;
  if (!one) return choose();
  suggest([]);
  if (one.size > LARGEST) { file.value = ""; state.textContent = `Over ${LARGEST / 2 ** 20} MiB: reduce the image size.`; return; }
  URL.revokeObjectURL(page.src);
  page.src = URL.createObjectURL(one);
  question.focus();
}

function tell({answers: rows, target, read}) {
  const accepted = document.createElement("bdi");  // a text in its own direction
  accepted.textContent = target;
  answers.caption.replaceChildren(...(target ? ["Accepted answer: ", accepted] : []));
  answers.tBodies[0].replaceChildren(...rows.map(row => {
    const line = document.createElement("tr");
    for (const text of [row.system, row.answer || "(empty)", `${Math.round(100 * row.confidence)} %`, `${row.seconds.toFixed(2)} s`])
      Object.assign(line.insertCell(), {textContent: text, dir: "auto"});
    return line;
  }));
  answers.hidden = false;
  state.textContent = read;
}

async function ask(event) {
  event.preventDefault();
  const body = new FormData();
  body.set("question", question.value);
  if (file.files.length) body.set("page", file.files[0]); else body.set("example", example.value);
  at("ask").disabled = true;
  answers.hidden = true;
  state.textContent = "Reading the page …";
  try {
    const reply = await (await fetch("/ask", {method: "POST", body})).json();
    if (reply.error) state.textContent = `No answer: ${reply.error}`; else tell(reply);
  } catch { state.textContent = "No answer: the server does not respond. Check that docvlm-demo is still running."; }
  finally { at("ask").disabled = false; }
}

form.addEventListener("submit", ask);
example.addEventListener("change", choose);
file.addEventListener("change", take);
for (const name of ["dragenter", "dragover", "dragleave", "drop"])
  document.body.addEventListener(name, event => {
    event.preventDefault();
    document.body.classList.toggle("dropping", name === "dragenter" || name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) { file.files = event.dataTransfer.files; take(); }
  });

examples = await (await fetch("/examples")).json();
for (const [number, one] of examples.entries()) example.add(new Option(one.name, number));
choose();
