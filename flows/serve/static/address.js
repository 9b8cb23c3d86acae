// The state of a page in its address, so that the back button, a bookmark and a link all work.

/** The state of the page at `path`: `names` of its parameters; `defaults` are values that an address leaves out. */
export function address(path, names, defaults = {}) {
  const of = (state) => {
    const kept = names.filter((name) => state[name] && state[name] !== defaults[name]);
    const query = new URLSearchParams(kept.map((name) => [name, state[name]])).toString();
    return query ? `${path}?${query}` : path;
  };
  return {
    /** The state in the address; a missing parameter is its default or "". */
    read() {
      const parameters = new URLSearchParams(location.search);
      return Object.fromEntries(names.map((name) => [name, parameters.get(name) ?? defaults[name] ?? ""]));
    },
    /** The address of a state. */
    of,
    /** Go to a state; the back button returns to the previous one, unless `replace` is true. */
    go(state, { replace = false, opened = false } = {}) {
      history[replace ? "replaceState" : "pushState"]({ opened }, "", of(state));
    },
  };
}

export const search = address("/", ["q", "method", "split", "with", "top", "item", "in", "from"], { top: "10", from: "1" });

export const queries = address("/queries", ["split", "runs", "a", "b", "found", "missed", "k", "words", "seconds", "hub", "failed", "item", "taken", "text", "sort", "reverse", "at"], { k: "1", sort: "order" });

export const items = address("/items", ["split", "item", "method", "view", "text", "from"], { view: "items", from: "0" });

export const map = address("/map", ["split", "method", "by", "colour", "item"], { by: "pca", colour: "failure" });

/** The names in a list separated by commas. */
export const listed = (text) => text.split(",").map((name) => name.trim()).filter(Boolean);
