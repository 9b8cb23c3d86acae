// Search without a server: browsers start no worker from a page that was opened as a file, and material's search needs one.
// There a hidden frame takes its place. The name of this file keeps the theme from loading such a script from elsewhere.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      const page = frame.contentDocument;
      page.open();
      page.write(
        "<html><body><script>" +
          "postMessage = parent.postMessage.bind(parent);" +
          "importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((done, failed) => {" +
          "const script = document.createElement('script'); script.src = url; script.onload = done;" +
          "script.onerror = failed; document.body.appendChild(script); })), Promise.resolve());" +
          "<\/script><script src=\"" + new URL(url, location) + "\"><\/script></body></html>",
      );
      page.close();
      window.addEventListener("message", (event) => {
        if (event.source !== this.inside) return;
        this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        if (this.onmessage) this.onmessage(event);
      });
    }

    postMessage(data) {
      const send = () => this.inside.dispatchEvent(new MessageEvent("message", { data }));
      if (this.inside.document.readyState === "complete") send();
      else this.inside.addEventListener("load", send);
    }

    terminate() {
      this.inside.frameElement.remove();
    }
  };
}
