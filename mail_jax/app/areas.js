// Hands the picture of the marked areas to the script of the tools.
watch("value", () => {
  document.dispatchEvent(new CustomEvent("areas", { detail: props.value || "" }));
});
