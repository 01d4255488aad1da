// Loads Pyodide and the wheels, all from beside this page, and lets a test run Python in it.
import { loadPyodide } from "./pyodide/pyodide.mjs";

export async function start() {
  const pyodide = await loadPyodide();
  const wheels = await (await fetch("wheels.json")).json();
  await pyodide.loadPackage(wheels.map((name) => new URL(name, location.href).href));
  const text = await (await fetch("scenarios.py")).text();
  pyodide.FS.writeFile("/home/pyodide/scenarios.py", text);
  return pyodide;
}

export async function run(pyodide, name, enclave) {
  const code = `
import json, scenarios
json.dumps(await scenarios.run(${JSON.stringify(name)}, json.loads(${JSON.stringify(JSON.stringify(enclave))})))`;
  return JSON.parse(await pyodide.runPythonAsync(code));
}

if (globalThis.document) {
  const state = document.getElementById("state");
  try {
    const pyodide = await start();
    globalThis.pyodide = pyodide;
    globalThis.run = (name, enclave) => run(pyodide, name, enclave);
    globalThis.work = (name, enclave) =>
      new Promise((resolve, reject) => {
        const worker = new Worker("worker.mjs", { type: "module" });
        worker.onmessage = (event) => { worker.terminate(); resolve(event.data); };
        worker.onerror = (event) => reject(new Error(event.message));
        worker.postMessage([name, enclave]);
      });
    state.textContent = "ready";
  } catch (error) {
    state.textContent = `failed: ${error.stack ?? error}`;
  }
  state.dataset.over = "";
}
