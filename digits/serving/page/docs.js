// A page for people from the OpenAPI description of the service.

const here = new URL(".", location.href).href;
const EXAMPLES = {
  "/predict": [
    `curl --data-binary @photo.png ${here}predict`,
    `curl -F file=@one.png -F file=@two.jpg '${here}predict?single=true'`,
  ],
  "/logits": [`curl --json '{"inputs": [[[[0, …], …]]]}' ${here}logits`, `curl --data-binary @images.f32 ${here}logits`],
  "/health": [`curl ${here}health`],
};

const add = (parent, tag, words = "") => {
  const made = Object.assign(document.createElement(tag), { textContent: words });
  parent.append(made);
  return made;
};

const api = await (await fetch("openapi.json")).json();
document.getElementById("about").textContent = `${api.info.description} Version ${api.info.version}.`;
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, call] of Object.entries(methods)) {
    const section = add(document.getElementById("endpoints"), "section");
    section.className = "endpoint";
    add(section, "h2", `${method.toUpperCase()} ${path}`);
    add(section, "p", `${call.summary}. ${call.description ?? ""}`);
    const list = add(section, "ul");
    for (const one of call.parameters ?? []) add(list, "li", `?${one.name}: ${one.schema.type}; ${one.description}`);
    for (const kind of Object.keys(call.requestBody?.content ?? {})) add(list, "li", `body: ${kind}`);
    add(section, "pre", (EXAMPLES[path] ?? []).join("\n"));
  }
}
