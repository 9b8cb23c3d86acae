// What is shown, as the address says it: so that the back button, a bookmark and a link all work.

const NAMES = ["q", "method", "split", "with", "top", "item", "in"];

/** The state that the address names; a name that is not there is "". */
export function read() {
  const parameters = new URLSearchParams(location.search);
  return Object.fromEntries(NAMES.map((name) => [name, parameters.get(name) ?? ""]));
}

/** The address of a state. */
export function of(state) {
  const kept = NAMES.filter((name) => state[name] && !(name === "top" && state[name] === "10"));
  const query = new URLSearchParams(kept.map((name) => [name, state[name]])).toString();
  return query ? `?${query}` : "/";
}

/** Go to a state; the one before stays behind the back button unless `replace`. */
export function go(state, { replace = false, opened = false } = {}) {
  history[replace ? "replaceState" : "pushState"]({ opened }, "", of(state));
}
