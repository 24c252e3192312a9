// SPDX-License-Identifier: GPL-2.0
/* The line of text that describes a request, as it is written to /dev/lgss_trigger. */

#include <linux/kernel.h>
#include <linux/string.h>

#include "testmod.h"

#define MAX_WAIT_MS	300000

static int parse_number(const char *text, unsigned int limit, unsigned int *value)
{
	int error = kstrtouint(text, 10, value);

	if (error)
		return error;
	return *value > limit ? -ERANGE : 0;
}

static int parse_when(const char *text, enum lgss_when *when)
{
	static const char * const words[] = {
		[LGSS_NOW] = "now",
		[LGSS_AT_CLOSE] = "close",
		[LGSS_IN_CHANNEL] = "channel",
	};
	int index = match_string(words, ARRAY_SIZE(words), text);

	if (index < 0)
		return -EINVAL;
	*when = index;
	return 0;
}

static int parse_field(struct lgss_request *request, const char *name, char *value)
{
	unsigned int number;
	int error;

	if (!strcmp(name, "description")) {
		request->description = value;
		return *value ? 0 : -EINVAL;
	}
	if (!strcmp(name, "when"))
		return parse_when(value, &request->when);
	if (!strcmp(name, "timeout_ms"))
		return parse_number(value, MAX_WAIT_MS, &request->timeout_ms);
	if (!strcmp(name, "bind_delay_ms"))
		return parse_number(value, MAX_WAIT_MS, &request->bind_delay_ms);
	error = parse_number(value, 1, &number);
	if (error)
		return error;
	if (!strcmp(name, "root"))
		request->root = number;
	else if (!strcmp(name, "hold"))
		request->hold = number;
	else
		return -EINVAL;
	return 0;
}

/*
 * Fill in a request from its own text: `name=value` with a space between them. The
 * callout comes last and takes the rest, spaces and all: a hostile one may hold
 * anything but NUL.
 */
int lgss_parse_request(struct lgss_request *request)
{
	char *rest = request->text;
	size_t size = strlen(rest);
	int error;

	if (size && rest[size - 1] == '\n')
		rest[size - 1] = 0;
	while (rest) {
		char *name, *value;

		if (!strncmp(rest, "callout=", 8)) {
			request->callout = rest + 8;
			break;
		}
		value = strsep(&rest, " ");
		name = strsep(&value, "=");
		if (!value)
			return -EINVAL;
		error = parse_field(request, name, value);
		if (error)
			return error;
	}
	return request->description && request->callout ? 0 : -EINVAL;
}
