/*
 * The messages between an upcall's processes and lgssd, as lgss_keyring/front/lgssd_messages.py has them.
 *
 * lgssd is root's and is believed.  But no message, of any bytes, makes these functions read or write
 * outside of it: fuzz.c tries that.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "arguments.h"

enum { UPCALL_LIMIT = 8192, REPLY_LIMIT = 8192, MESSAGE_LIMIT = 20000, TOKEN_HEAD = 21, ANSWER_HEAD = 13,
       REPLY_HEAD = 13, LARGEST_ERRNO = 4095, SILENCE_MS = 1500, WORD_MS = 50 };

static char message[MESSAGE_LIMIT + 1];

struct token { uint32_t secid, service, uid, gid, limit; const char *path, *obd_name, *data; size_t size; };
struct answer { uint32_t error, life, patience; const char *payload; size_t size; };

/* A U message in `out`, of UPCALL_LIMIT bytes, with `count` texts; 0 if it has no room there. */
static size_t pack_upcall(char *out, uint32_t elapsed, uint32_t timeout, const char *const *texts, int count)
{
    size_t size = 2 + sizeof(elapsed) + sizeof(timeout);
    memcpy(out, "U\1", 2);
    memcpy(out + 2, &elapsed, sizeof(elapsed));
    memcpy(out + 2 + sizeof(elapsed), &timeout, sizeof(timeout));
    for (int at = 0; at < count && size <= UPCALL_LIMIT; at++)
        size += (size_t)snprintf(out + size, UPCALL_LIMIT - size, "%s", texts[at]) + 1;
    return size <= UPCALL_LIMIT ? size : 0;
}

/* The head of an R message in `out`; the reply is behind it. */
static void pack_reply(char *out, int64_t status, int error)
{
    out[0] = 'R';
    memcpy(out + 1, &status, 8);
    memcpy(out + 9, &error, 4);
}

/* Take an A message apart. */
static bool parse_answer(const char *text, size_t size, struct answer *answer)
{
    if (size <= ANSWER_HEAD)
        return false;
    memcpy(answer, text + 1, ANSWER_HEAD - 1);
    answer->payload = text + ANSWER_HEAD;
    answer->size = size - ANSWER_HEAD;
    return answer->error <= LARGEST_ERRNO;
}

/* Take a T message apart.  `text` has a NUL behind it. */
static bool parse_token(const char *text, size_t size, struct token *token)
{
    if (size < TOKEN_HEAD || text[TOKEN_HEAD] != '/')
        return false;
    memcpy(token, text + 1, TOKEN_HEAD - 1);
    token->path = text + TOKEN_HEAD;
    token->obd_name = token->path + strlen(token->path) + 1;
    if (token->obd_name >= text + size)
        return false;
    token->data = token->obd_name + strlen(token->obd_name) + 1;
    token->size = token->data < text + size ? (size_t)(text + size - token->data) : 0;
    return token->size > 0;
}

/* A connection to lgssd on which the request is sent, or -1. */
static int call_lgssd(const struct call *call)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct ucred peer;
    const char *texts[12] = { call->realm, call->config };
    memcpy(texts + 2, call->arguments, 10 * sizeof(*texts));
    size_t size = pack_upcall(message, (uint32_t)(now() - call->started), call->timeout, texts, 12);
    size_t length = strlen(call->lgssd);
    if (!size || !length || length >= sizeof(address.sun_path))
        return -1;
    memcpy(address.sun_path, call->lgssd, length);
    int lgssd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (lgssd > 2 && !connect(lgssd, (struct sockaddr *)&address, sizeof(address)) &&
        !getsockopt(lgssd, SOL_SOCKET, SO_PEERCRED, &peer, &(socklen_t){ sizeof(peer) }) && peer.uid == 0 &&
        send(lgssd, message, size, MSG_NOSIGNAL) == (ssize_t)size)
        return lgssd;
    close(lgssd);
    return -1;
}

/* The milliseconds that an ordinary user's front waits for the word, which lgssd has left in a file. */
static int64_t word_ms(const struct call *call)
{
    char name[120], text[8] = "";
    snprintf(name, sizeof(name), "%s.word", call->lgssd);
    int file = open(name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    int64_t ms = read(file, text, sizeof(text) - 1) > 0 ? number(text, strspn(text, "0123456789"), 6) : -1;
    close(file);
    return ms < 0 ? WORD_MS : ms;
}

/* The size of the next message, in `message` with a NUL behind it; 0 if none comes within `ms`, -1 at the end
 * of the connection and for a message that is too long. */
static ssize_t receive(int lgssd, int64_t ms)
{
    struct pollfd ready = { .fd = lgssd, .events = POLLIN };
    if (poll(&ready, 1, ms > 0 ? (int)ms : 0) == 0)
        return 0;
    ssize_t size = recv(lgssd, message, MESSAGE_LIMIT, MSG_DONTWAIT | MSG_TRUNC);
    if (size <= 0 || size > MESSAGE_LIMIT)
        return -1;
    message[size] = '\0';
    return size;
}

static void send_done(int lgssd, int error)
{
    char done[5] = "K";
    memcpy(done + 1, &error, 4);
    send(lgssd, done, sizeof(done), MSG_NOSIGNAL);
}
