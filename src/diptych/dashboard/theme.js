// Light, dark, or as the system has it. The choice is kept in this browser.

const STORED = "diptych-theme";
const CHOICES = ["auto", "light", "dark"];
const system = matchMedia("(prefers-color-scheme: dark)");

export function followTheme(button, onChange) {
  let choice = read();

  function apply() {
    const isDark = choice === "dark" || (choice === "auto" && system.matches);
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    button.textContent = `Theme: ${choice}`;
    onChange();
  }

  button.addEventListener("click", () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
    write(choice);
    apply();
  });
  system.addEventListener("change", apply);
  apply();
}

function read() {
  try {
    const stored = localStorage.getItem(STORED);
    return CHOICES.includes(stored) ? stored : "auto";
  } catch {
    return "auto"; // a browser that keeps nothing
  }
}

function write(choice) {
  try {
    localStorage.setItem(STORED, choice);
  } catch {
    // It holds until the page is left.
  }
}
