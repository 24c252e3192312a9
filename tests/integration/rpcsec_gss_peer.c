/* An RPCSEC_GSS initiator and acceptor of another make, libtirpc's, for cross-checks.
 *
 *   peer client PORT SERVICE   three null calls with each service level, then DESTROY
 *   peer server SERVICE        prints its port, serves the null procedure
 */
#include <arpa/inet.h>
#include <rpc/rpc.h>
#include <rpc/rpcsec_gss.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PROGRAM 0x20004c47
#define VERSION 1

static char mechanism[] = "kerberos_v5";

static int client(int port, char *service)
{
	static const rpc_gss_service_t levels[] = {
		rpcsec_gss_svc_none, rpcsec_gss_svc_integrity, rpcsec_gss_svc_privacy
	};
	struct timeval limit = { 5, 0 };
	unsigned int level;

	for (level = 0; level < 3; level++) {
		struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
		int descriptor = RPC_ANYSOCK, call;
		CLIENT *handle;

		address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		handle = clnttcp_create(&address, PROGRAM, VERSION, &descriptor, 0, 0);
		if (!handle) {
			clnt_pcreateerror("connect");
			return 1;
		}
		handle->cl_auth = rpc_gss_seccreate(handle, service, mechanism, levels[level],
						    NULL, NULL, NULL);
		if (!handle->cl_auth) {
			rpc_gss_error_t error;

			rpc_gss_get_error(&error);
			fprintf(stderr, "seccreate: rpc_gss_error %d, system error %d\n",
				error.rpc_gss_error, error.system_error);
			return 1;
		}
		for (call = 0; call < 3; call++) {
			enum clnt_stat status = clnt_call(handle, NULLPROC, (xdrproc_t)xdr_void,
							  NULL, (xdrproc_t)xdr_void, NULL, limit);
			printf("level %u call %d: %s\n", level, call, clnt_sperrno(status));
			if (status != RPC_SUCCESS)
				return 1;
		}
		auth_destroy(handle->cl_auth);
		handle->cl_auth = NULL;
		close(descriptor);
	}
	return 0;
}

static void dispatch(struct svc_req *request, SVCXPRT *transport)
{
	(void)request;
	svc_sendreply(transport, (xdrproc_t)xdr_void, NULL);
}

static int server(char *service)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t length = sizeof(address);
	int descriptor = socket(AF_INET, SOCK_STREAM, 0);
	SVCXPRT *transport;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(descriptor, (struct sockaddr *)&address, length) || listen(descriptor, 16) ||
	    getsockname(descriptor, (struct sockaddr *)&address, &length))
		return 1;
	transport = svc_vc_create(descriptor, 0, 0);
	/* No protocol: no rpcbind is asked. */
	if (!transport || !svc_register(transport, PROGRAM, VERSION, dispatch, 0))
		return 1;
	if (!rpc_gss_set_svc_name(service, mechanism, 0, PROGRAM, VERSION))
		return 1;
	printf("listening on 127.0.0.1 %d\n", ntohs(address.sin_port));
	fflush(stdout);
	svc_run();
	return 1;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "client"))
		return client(atoi(argv[2]), argv[3]);
	if (argc == 3 && !strcmp(argv[1], "server"))
		return server(argv[2]);
	return 2;
}
