import asyncio
import concurrent.futures


def compute(n):
    return sum(range(n))


async def main():
    loop = asyncio.get_running_loop()
    with concurrent.futures.ProcessPoolExecutor(2) as pool:

        async def answer(reader, writer):
            n = int(await reader.readline())
            writer.write(b"%d\n" % await loop.run_in_executor(pool, compute, n))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()

        async def ask(n):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"%d\n" % n)
            line = await reader.readline()
            writer.close()
            return int(line)

        print(await asyncio.gather(*[ask(n * 1000) for n in range(20)]))
        server.close()


if __name__ == "__main__":
    asyncio.run(main())
