// Puts the link of a result into the address bar, and copies it.
const button = element.querySelector(".copy");
const note = element.querySelector(".note");
const status = element.querySelector("[role=status]");

// Gradio's own parameters, such as the theme, stay.
function address() {
  const query = new URLSearchParams(props.value.query);
  for (const [name, value] of new URLSearchParams(window.location.search)) {
    if (name.startsWith("__")) query.append(name, value);
  }
  return window.location.pathname + (query.size ? `?${query}` : "");
}

function show() {
  button.hidden = !props.value.query;
  note.textContent = props.value.note;
  status.textContent = props.value.status;
  // Without a link of this result, that of an earlier one must not stay.
  window.history.replaceState(window.history.state, "", address());
}
watch("value", show);
// Gradio runs this when the first result is already here.
if (props.value.status) show();

// Browsers give pages without TLS no clipboard, but let them copy what is selected.
function copySelected(text) {
  const area = document.createElement("textarea");
  area.value = text;
  element.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

button.addEventListener("click", async () => {
  const text = window.location.origin + address();
  let done = false;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch {
    done = copySelected(text);
  }
  button.focus();
  note.textContent = done ? "Copied. " + props.value.note : text;
  status.textContent = done ? "The link is copied" : "The link could not be copied; it is shown";
});
