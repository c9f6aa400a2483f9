"use strict";
// Puts what the server sends into the page, as it is sent. Every text in it was escaped by the server.
(() => {
  const line = document.getElementById("line");
  const tell = (text) => {
    if (line.textContent !== text) line.textContent = text;
    line.hidden = !text;
  };
  const put = (part, html) => {
    const place = document.querySelector(`[data-part="${part}"]`);
    if (!place || place.innerHTML === html) return;
    const open = [...place.querySelectorAll("details")].map((one) => one.open);
    const typing = place.contains(document.activeElement) ? document.activeElement.id : "";
    place.innerHTML = html;
    place.querySelectorAll("details").forEach((one, number) => (one.open = Boolean(open[number])));
    if (place.querySelector("#examples-data")) browseAnswers();
    if (typing && document.getElementById(typing)) document.getElementById(typing).focus();
  };
  const events = new EventSource("events");
  events.addEventListener("part", (event) => {
    const { name, html } = JSON.parse(event.data);
    if (name === "title") document.title = html;
    else if (name === "line") tell(html);
    else put(name, html);
  });
  events.addEventListener("open", () => tell(""));
  events.addEventListener("error", () => tell("spintune watch does not answer; this page goes on by itself when it does."));
})();
