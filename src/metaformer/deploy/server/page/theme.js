// Dark or light before the first paint: the visitor's choice, else that of the system.
(() => {
  const root = document.documentElement;
  let chosen = null;
  try {
    chosen = localStorage.getItem("theme");
  } catch {
    // storage is switched off: the choice lasts as long as the page
  }
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
})();
