// The same in a worker, as JupyterLite has its kernel in one.
import { run, start } from "./page.mjs";

onmessage = async (event) => {
  const [name, enclave] = event.data;
  try {
    postMessage(await run(await start(), name, enclave));
  } catch (error) {
    postMessage({ error: ["JavaScript", String(error.stack ?? error)] });
  }
};
