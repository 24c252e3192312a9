/*
 * lgss_keyring, the native front: what /sbin/request-key runs while a process waits for a key.
 *
 * It does what lgss_keyring/front/ does, in the ordinary case alone: it takes the authority over the key,
 * hears lgssd's word, instantiates the key and exits.  Its child does what lgssd says; the messages are in
 * lgss_keyring/front/lgssd_messages.py.  For everything else it becomes lgss_keyring.py, which lies beside
 * it.  The front in Python takes 10 ms, and this one 1 ms: it is linked statically, with nothing but libc.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "lgssd.h"

/* Of linux/keyctl.h, which is not among musl's headers. */
enum { GET_KEYRING_ID = 0, UPDATE = 2, DESCRIBE = 6, READ = 11, INSTANTIATE = 12, SET_TIMEOUT = 15,
       ASSUME_AUTHORITY = 16, REJECT = 19, INVALIDATE = 21, SESSION_KEYRING = -3 };
enum { MEMBERS_LIMIT = 1000, FAILURE_LIFE = 2, FAILURE_SIZE = 12, PATIENCE_MS = 5000,
       OBD_NAME_BYTES = 63, WITNESS_FIRST_MS = 100 };
/* What the front heard.  GO, DO_IT_YOURSELF and QUIT are also what it tells its child. */
enum word { GO = '1', DO_IT_YOURSELF = 'Y', QUIT = 'Q', REJECTED = 'R', NONE_IN_TIME = 'N' };

static char scratch[65536];
static _Atomic int64_t *write_ends; /* ms, 0: no write is going on; shared with the witness */

/* keyctl(2); the errno, or 0. */
static int keyctl(int operation, long key, long a, long b, long c)
{
    return syscall(SYS_keyctl, operation, key, a, b, c) < 0 ? errno : 0;
}

static void pause_for(int64_t ms)
{
    nanosleep(&(struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 }, NULL);
}

static void schedule(int policy)
{
    syscall(SYS_sched_setscheduler, 0, policy, &(int){ 0 }); /* musl's own does nothing */
}

/* ---- becoming lgss_keyring.py ---- */

/* Replace this process by lgss_keyring.py, with the same words.  Unless `is_anew`, two options more stand before
 * `create`, where the last of equal ones counts: not to try lgssd, and `option` (NULL: none).  Returns if that is
 * not possible. */
static void become_python(const struct call *call, bool is_anew, char *option, char *value)
{
    static char program[4096] = "/";
    char *words[MOST_WORDS + 8], **to = words, *more[] = { "--lgssd", "", option, value, NULL };
    if (readlink("/proc/self/exe", program, sizeof(program) - sizeof("lgss_keyring.py")) > 0)
        strcpy(strrchr(program, '/') + 1, "lgss_keyring.py");
    if (is_anew) {
        execv(program, call->words);
    } else {
        for (char **from = call->words; from < call->arguments; from++)
            *to++ = *from;
        for (char **from = more; *from; from++)
            *to++ = *from;
        for (char **from = call->arguments; (*to++ = *from); from++)
            ;
        execv(program, words);
    }
    openlog("lgss_keyring", LOG_PID, LOG_AUTHPRIV);
    syslog(LOG_ERR, "key %d: %s: %m; reinstall lgss_keyring", call->key, program);
}

/* In the front: let lgss_keyring.py do the whole work; `is_anew`: as if this program had not been there.  If that
 * is not possible the kernel negates the key. */
static _Noreturn void leave_it(const struct call *call, bool is_anew)
{
    become_python(call, is_anew, NULL, NULL);
    _exit(1);
}

/* ---- the key's answer ---- */

/* Update the key, again until `end` while the kernel has not bound its context to it (docs/protocol.md 7). */
static int update(const struct call *call, const void *payload, size_t size, int64_t end)
{
    int error;
    for (int64_t wait = 1; (error = keyctl(UPDATE, call->key, (long)payload, (long)size, 0)) == EAGAIN;
         wait = wait < 50 ? 2 * wait : 100) {
        if (now() + wait > end)
            break;
        pause_for(wait);
    }
    return error;
}

/* The payload of a failure, which lives as long as all who wait for it need to see it. */
static int update_failure(const struct call *call, int error, int64_t end)
{
    const int32_t payload[FAILURE_SIZE / 4] = { 0, -error, 0 };
    int result = update(call, payload, sizeof(payload), end);
    return result || !call->is_user ? result : keyctl(SET_TIMEOUT, call->key, FAILURE_LIFE, 0, 0);
}

/* Whether the key has its answer, or is gone.  One of type lgssc cannot be read: a second update of it has
 * no effect. */
static bool has_answer(const struct call *call)
{
    long size = syscall(SYS_keyctl, READ, call->key, NULL, 0, 0);
    if (size < 0)
        return errno != EOPNOTSUPP && errno != EACCES;
    if (size == FAILURE_SIZE && call->is_user) /* killed between the update and the timeout? */
        keyctl(SET_TIMEOUT, call->key, FAILURE_LIFE, 0, 0);
    return size > 1;
}

/* Answer for a process that `cause` has ended; lgss_keyring.py logs that. */
static _Noreturn void answer_for_it(const struct call *call, int error, const char *cause)
{
    char killed[100];
    snprintf(killed, sizeof(killed), "%d:%s", error, cause);
    if (!has_answer(call)) {
        update_failure(call, error, now() + PATIENCE_MS);
        become_python(call, false, "--killed", killed);
    }
    _exit(0);
}

/* Give the key lgssd's answer.  If the kernel has no room for it (the requestor's quota, for example), the key gets
 * that failure; if it has none for that either the key goes, so that nobody waits for its timeout. */
static int settle(const struct call *call, const struct answer *answer)
{
    int64_t end = now() + answer->patience;
    int error = update(call, answer->payload, answer->size, end);
    uint32_t life = answer->life ? answer->life : FAILURE_LIFE; /* 0 would be for ever */
    if (!error && call->is_user && (error = keyctl(SET_TIMEOUT, call->key, life, 0, 0)))
        keyctl(INVALIDATE, call->key, 0, 0, 0); /* better no answer than a key that never ends */
    bool is_gone = error == EKEYREVOKED || error == EKEYEXPIRED || error == EACCES || error == ENOKEY;
    if (error && error != EAGAIN && !is_gone && update_failure(call, error, end))
        keyctl(INVALIDATE, call->key, 0, 0, 0);
    return error;
}

/* ---- lgssd ---- */

/* Write the token to init_channel (docs/protocol.md 6), and send what that gave. */
static bool write_token(int lgssd, const struct token *token)
{
    static char obd_name[OBD_NAME_BYTES + 1], reply[REPLY_HEAD + REPLY_LIMIT];
    int64_t status = -EIO;
    struct { uint32_t version, secid; uint64_t obd_name; uint32_t service, uid, gid, padding;
             uint64_t size, data, reply_size, reply, status; } record = {
        2, token->secid, (uintptr_t)obd_name, token->service, token->uid, token->gid, 0, token->size,
        (uintptr_t)token->data, REPLY_LIMIT, (uintptr_t)(reply + REPLY_HEAD), (uintptr_t)&status };
    _Static_assert(sizeof(record) == 72, "as Lustre's kernel has it");
    strncpy(obd_name, token->obd_name, OBD_NAME_BYTES);
    memset(reply + REPLY_HEAD, 0, REPLY_LIMIT);
    atomic_store(write_ends, now() + (int64_t)token->limit * 1000);
    int channel = open(token->path, O_WRONLY | O_CLOEXEC);
    ssize_t written = channel < 0 ? -1 : write(channel, &record, sizeof(record));
    int error = written < 0 ? errno : written != (ssize_t)sizeof(record) ? EIO : 0;
    close(channel);
    atomic_store(write_ends, 0);
    pack_reply(reply, error ? 0 : status, error);
    size_t size = REPLY_HEAD + (error || status ? 0 : REPLY_LIMIT);
    return send(lgssd, reply, size, MSG_NOSIGNAL) == (ssize_t)size;
}

/* ---- the child ---- */

/* Serve the upcall without lgssd: become lgss_keyring.py, which waits for the front by the same pipe. */
static _Noreturn void serve_alone(const struct call *call, int front)
{
    char instantiated[40];
    snprintf(instantiated, sizeof(instantiated), "%d:%lld", front, (long long)call->started);
    fcntl(front, F_SETFD, 0);
    become_python(call, false, "--instantiated", instantiated);
    _exit(1); /* the witness answers */
}

/* Serve the upcall, when the front has said through its pipe that it may begin. */
static _Noreturn void serve(const struct call *call, int front, int lgssd)
{
    struct token token;
    struct answer answer;
    char said = DO_IT_YOURSELF; /* if the front is killed */
    while (read(front, &said, 1) < 0 && errno == EINTR)
        ;
    schedule(SCHED_OTHER);
    if (said == QUIT)
        _exit(0);
    while (said == GO && lgssd >= 0) {
        ssize_t size = receive(lgssd, SILENCE_MS);
        char kind = size > 0 ? message[0] : 'Y';
        if (kind == 'A' && parse_answer(message, (size_t)size, &answer)) {
            send_done(lgssd, settle(call, &answer));
            _exit(0);
        }
        if (kind == 'T' && parse_token(message, (size_t)size, &token) && write_token(lgssd, &token))
            continue;
        if (kind != 'G' && kind != 'P')
            break;
    }
    serve_alone(call, front);
}

/* Wait for the process that serves the upcall, and answer for it if it cannot. */
static _Noreturn void watch(const struct call *call, pid_t server, const sigset_t *ended)
{
    char cause[30];
    int status = 0;
    while (waitpid(server, &status, WNOHANG) == 0) {
        int64_t end = atomic_load(write_ends);
        if (end && now() > end) {
            kill(server, SIGKILL); /* it may be where no signal reaches it */
            answer_for_it(call, ETIMEDOUT, "its witness, as Lustre took no token in time,");
        }
        sigtimedwait(ended, NULL, &(struct timespec){ .tv_sec = 1 });
    }
    if (status == 0)
        _exit(0);
    bool is_killed = WIFSIGNALED(status); /* else lgss_keyring.py does not run, and has logged why */
    snprintf(cause, sizeof(cause), is_killed ? "signal %d" : "its exit (status %d)",
             is_killed ? WTERMSIG(status) : WEXITSTATUS(status));
    answer_for_it(call, is_killed ? EIO : ELIBACC, cause);
}

/* The front's child: leave the front's session, as a daemon does, and become the witness of the process that
 * serves the upcall. */
static _Noreturn void child(const struct call *call, int front, int lgssd)
{
    sigset_t ended;
    /* With the authority, a request that Lustre makes during a write would fail (docs/protocol.md 6). */
    keyctl(ASSUME_AUTHORITY, 0, 0, 0, 0);
    schedule(SCHED_BATCH); /* else this may run before the front has exited */
    setsid();
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int spared = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    for (int stream = 0; stream < 3 && null >= 0; stream++)
        dup2(null, stream);
    dprintf(spared, "-1000");
    close(spared);
    write_ends = mmap(NULL, sizeof(*write_ends), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sigemptyset(&ended);
    sigaddset(&ended, SIGCHLD);
    sigprocmask(SIG_BLOCK, &ended, NULL);
    pid_t server = chdir("/") || write_ends == MAP_FAILED ? -1 : fork();
    if (server < 0)
        answer_for_it(call, ENOMEM, "want of memory or processes");
    if (server == 0) {
        sigprocmask(SIG_UNBLOCK, &ended, NULL);
        serve(call, front, lgssd);
    }
    close(front);
    close(lgssd);
    watch(call, server, &ended);
}

/* ---- the front ---- */

/* Whether all that seem to wait for the key are in our mount namespace (front/requestor_place.py).  Somebody
 * may forge a line, as a key's description may hold a newline: that adds to them. */
static bool is_at_home(const struct call *call)
{
    struct stat own, theirs;
    char waits[60], name[40];
    size_t kept = 0;
    ssize_t size;
    int keys = open("/proc/keys", O_RDONLY | O_CLOEXEC);
    int length = snprintf(waits, sizeof(waits), " .request_ key:%x pid:", (unsigned)call->key);
    if (keys < 0 || stat("/proc/self/ns/mnt", &own))
        return false;
    while ((size = read(keys, scratch + kept, sizeof(scratch) - 1 - kept)) > 0) {
        char *line = scratch, *end;
        for (scratch[kept += (size_t)size] = '\0'; (end = strchr(line, '\n')); line = end + 1) {
            *end = '\0';
            const char *at = strstr(line, waits);
            if (!at)
                continue;
            snprintf(name, sizeof(name), "/proc/%.*s/ns/mnt", (int)strspn(at + length, "0123456789"), at + length);
            if (stat(name, &theirs) || theirs.st_ino != own.st_ino)
                return false;
        }
        kept = strlen(line);
        memmove(scratch, line, kept + 1);
    }
    close(keys);
    return size == 0;
}

/* Whether a keyring of the requestor's holds a collection of credentials; a look at its members, bounded. */
static bool holds_credentials(const struct call *call)
{
    static int32_t members[MEMBERS_LIMIT];
    for (int at = 7; at < 10 && call->brings_credentials; at++) {
        int64_t keyring = number(call->arguments[at], strlen(call->arguments[at]), 10);
        long size = keyring > 0 ? syscall(SYS_keyctl, READ, keyring, members, sizeof(members), 0) : 0;
        for (long each = 0; size <= (long)sizeof(members) && each < size / 4; each++) {
            long length = syscall(SYS_keyctl, DESCRIBE, members[each], scratch, 200, 0);
            if (length > 0 && length <= 200 && memmem(scratch, (size_t)length, "_krb_", 5))
                return true;
        }
    }
    return false;
}

/* Wait for lgssd's word, for the machine as long as the alarm allows and lgssd says that it is at work. */
static enum word hear(const struct call *call, int lgssd, struct answer *answer)
{
    int64_t end = call->started + (call->timeout - 1) * 1000;
    int64_t soon = call->is_machine ? end : now() + word_ms(call);
    for (end = soon < end ? soon : end;;) {
        ssize_t size = receive(lgssd, end - now() < SILENCE_MS ? end - now() : SILENCE_MS);
        if (size == 0)
            return NONE_IN_TIME;
        if (size > 0 && message[0] == 'A' && parse_answer(message, (size_t)size, answer) && answer->error)
            return REJECTED;
        if (size < 0 || message[0] != 'P')
            return size > 0 && message[0] == 'G' ? GO : DO_IT_YOURSELF;
    }
}

static int instantiate(const struct call *call)
{
    if (!call->is_user) /* with no payload, and never into our own keyring: that hangs (docs/protocol.md 7) */
        return keyctl(INSTANTIATE, call->key, 0, 0, 0);
    /* A second more, as the kernel counts whole ones. The link makes the child the key's possessor. */
    int error = keyctl(SET_TIMEOUT, call->key, call->timeout + 1, 0, 0);
    long own = syscall(SYS_keyctl, GET_KEYRING_ID, SESSION_KEYRING, 0, 0, 0);
    return error ? error : own < 0 ? errno : keyctl(INSTANTIATE, call->key, (long)"", 1, own);
}

/* Tell the child, through its pipe.  The second byte is for lgss_keyring.py, if it becomes that. */
static bool tell(int child, enum word word)
{
    const char said[2] = { (char)word, (char)(word == QUIT ? QUIT : GO) };
    return write(child, said, sizeof(said)) == sizeof(said);
}

int main(int count, char **words)
{
    static struct call call;
    struct answer answer;
    char queue[60];
    int pipes[2];
    if (!parse(count, words, &call))
        leave_it(&call, true);
    signal(SIGPIPE, SIG_IGN);
    alarm(call.timeout); /* bounds the caller's wait even if somebody else holds a keyring's lock */
    /* Root may ask for others, and for the machine. What it asks for elsewhere must not even reach lgssd, which
     * may note that it fails: that note would hold for requests from here. */
    bool is_roots = call.is_user && !strcmp(call.arguments[5], "0");
    if (keyctl(ASSUME_AUTHORITY, call.key, 0, 0, 0) || holds_credentials(&call) || (is_roots && !is_at_home(&call)))
        leave_it(&call, true);
    int lgssd = call_lgssd(&call);
    snprintf(queue, sizeof(queue), NOTES "/slots/%s.queue", call.arguments[5]);
    if (lgssd < 0 && (!*call.note || !access(call.note, F_OK) || !access(queue, F_OK)))
        leave_it(&call, false);
    pid_t pid = pipe2(pipes, O_CLOEXEC) || pipes[0] < 3 ? -1 : fork();
    if (pid == 0) {
        close(pipes[1]);
        child(&call, pipes[0], lgssd);
    }
    if (pid < 0)
        leave_it(&call, false);
    close(pipes[0]);
    /* lgssd and the child have begun meanwhile: /proc/keys takes 0.7 ms on a machine with 1000 keys. */
    if (call.is_user && !is_roots && !is_at_home(&call)) {
        tell(pipes[1], QUIT);
        leave_it(&call, true);
    }
    enum word word = lgssd < 0 ? DO_IT_YOURSELF : hear(&call, lgssd, &answer);
    int error = 0;
    if (word == REJECTED)
        send_done(lgssd, error = keyctl(REJECT, call.key, answer.life, answer.error, 0));
    else if ((word != GO && call.is_machine) || instantiate(&call))
        error = 1;
    if (error || word == REJECTED)
        tell(pipes[1], QUIT);
    else if (!tell(pipes[1], word == DO_IT_YOURSELF ? word : GO) && fork() == 0) {
        pause_for(WITNESS_FIRST_MS); /* the child was killed, and perhaps its witness, too */
        answer_for_it(&call, EIO, "a signal");
    }
    if (error)
        leave_it(&call, false);
    _exit(word == REJECTED);
}
