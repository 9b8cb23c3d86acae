// Counts the characters of a query, so that a too long one is shortened before it is sent.

/** Watch `field`; `place` shows the count near the bound. Returns a function that says whether the text may be sent. */
export function counter(field, place, most) {
  const length = () => [...field.value.trim()].length;
  const update = () => {
    const over = length() - most;
    field.setAttribute("aria-invalid", String(over > 0));
    place.hidden = length() < 0.8 * most;
    place.className = over > 0 ? "warn" : "soft";
    place.textContent = over > 0
      ? `The query has ${length().toLocaleString("en")} characters; at most ${most.toLocaleString("en")} are possible. Leave out ${over.toLocaleString("en")}.`
      : `${length().toLocaleString("en")} of ${most.toLocaleString("en")} characters.`;
  };
  field.addEventListener("input", update);
  update();
  return () => {
    update();
    return length() <= most;
  };
}
