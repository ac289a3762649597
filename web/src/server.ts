// Asking the server: the token, and what its refusals say.

/** A refusal, in the words the server has for it. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

/** The server did not answer. */
export class Silent extends Error {}

const PATIENCE_MS = 8_000;

export class Server {
  token = "";

  /** Takes the token from the address's fragment, which browsers send to nobody. */
  readAddress(): void {
    const found = new URLSearchParams(location.hash.slice(1)).get("token");
    if (found) this.token = found.trim();
  }

  async ask(path: string, body?: object): Promise<Response> {
    const headers: Record<string, string> = { Authorization: `Bearer ${this.token}` };
    if (body) headers["Content-Type"] = "application/json";
    let answer: Response;
    try {
      answer = await fetch(path, {
        method: body ? "POST" : "GET",
        headers,
        body: body ? JSON.stringify(body) : null,
        signal: AbortSignal.timeout(PATIENCE_MS),
      });
    } catch {
      throw new Silent("The server does not answer.");
    }
    if (answer.ok) return answer;
    const problem: { detail?: string } = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, problem.detail ?? `the server answered ${answer.status}`);
  }

  async read<T>(path: string): Promise<T> {
    return (await this.ask(path)).json() as Promise<T>;
  }
}
