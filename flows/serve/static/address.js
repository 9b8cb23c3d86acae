// The state of the page in its address, so that the back button, a bookmark and a link all work.

const NAMES = ["q", "method", "split", "with", "top", "item", "in"];

/** The state in the address; a missing parameter is "". */
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

/** Go to a state; the back button returns to the previous one, unless `replace` is true. */
export function go(state, { replace = false, opened = false } = {}) {
  history[replace ? "replaceState" : "pushState"]({ opened }, "", of(state));
}
